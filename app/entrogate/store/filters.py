"""Which trajectories are meant: one value for the API, the command line, the viewer and exports."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select

from entrogate.store.schema import calls, trajectories, turns, unindexed

_FEW_CALLS = 500  # a list of ids that a statement can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryFilter:
    """Conditions that all have to hold; None asks for nothing. Times bound ``created_at``."""

    tenant: str | None = None
    task_id: str | None = None
    model: str | None = None
    mode: str | None = None
    has_outcome: bool | None = None
    complete: bool | None = None
    since: float | None = None  # seconds since the epoch
    until: float | None = None  # exclusive
    weight_version: str | None = None  # with a turn that these weights answered
    tool: str | None = None  # with a call of it
    decision: str | None = None  # with a call that became so

    def conditions(self, connection: Connection) -> list[ColumnElement[bool]]:
        """What a query over ``trajectories`` has to ask for.

        ``connection`` is asked how many calls match, for that decides how they are best found.
        """
        found = [*self._of_columns(), *self._of_turns()]
        if self.tool is not None or self.decision is not None:
            found.append(self._with_calls(connection))
        return found

    def _of_columns(self) -> list[ColumnElement[bool]]:
        columns = trajectories.c
        found: list[ColumnElement[bool]] = [
            columns[name] == value
            for name in ("tenant", "task_id", "model", "mode")
            if (value := getattr(self, name)) is not None
        ]
        if self.has_outcome is not None:
            known = columns.outcome.is_not(None)
            found.append(known if self.has_outcome else ~known)
        if self.complete is not None:
            whole = columns.incomplete_reason.is_(None)
            found.append(whole if self.complete else ~whole)
        if self.since is not None:
            found.append(columns.created_at >= self.since)
        if self.until is not None:
            found.append(columns.created_at < self.until)
        return found

    def _of_turns(self) -> list[ColumnElement[bool]]:
        if self.weight_version is None:
            return []
        answered = select(turns.c.trajectory_id).where(
            turns.c.weight_version == self.weight_version
        )
        return [trajectories.c.id.in_(answered)]

    def _with_calls(self, connection: Connection) -> ColumnElement[bool]:
        """Trajectories with a wanted call.

        Where many have one, a page is soon full; where few have, they are found by their calls.
        """
        called = select(turns.c.trajectory_id).join(calls, turns.c.id == calls.c.turn_id)
        asked = [
            (column, value)
            for column, value in ((calls.c.name, self.tool), (calls.c.applied, self.decision))
            if value is not None
        ]
        few = called.where(*(column == value for column, value in asked))
        found = connection.scalars(few.limit(_FEW_CALLS + 1)).all()
        if len(found) <= _FEW_CALLS:
            return trajectories.c.id.in_(set(found))
        many = called.where(turns.c.trajectory_id == trajectories.c.id)
        return many.where(*(unindexed(column) == value for column, value in asked)).exists()


EVERY = TrajectoryFilter()
"""All trajectories."""

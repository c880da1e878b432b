"""Reads whole trajectories in the order in which they last changed: what an export takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, func, select, tuple_

from entrogate.model_hashes import ModelHashes
from entrogate.store.codec import load_change
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.paths import judged_path
from entrogate.store.schema import (
    call_rewards,
    calls,
    changes,
    commits,
    feedback,
    models,
    results,
    rewards,
    trajectories,
    turns,
)
from entrogate.types import Cursor, EntropyChange

AnyRow: TypeAlias = "Row[*tuple[Any, ...]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """When a trajectory is taken as final, in seconds.

    With an outcome: ``quiet`` after its last turn or feedback. Without one: ``patience`` after its
    last turn.
    """

    quiet: float = 30.0
    patience: float = 3600.0

    def __post_init__(self) -> None:
        if not (self.quiet >= 1.0 and self.patience >= 1.0):
            raise ValueError("settling and patience are at least 1 second")

    def seconds(self, *, judged: bool) -> float:
        """How long a trajectory has to have been quiet."""
        return self.quiet if judged else self.patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A trajectory, with the commit of its last change (`commits`)."""

    trajectory_id: str
    sequence: int
    written_at: float  # seconds since the epoch, by the database's clock
    judged: bool  # has an outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrajectory:
    """A trajectory as stored: the row of each table, turns in the order of their index."""

    listed: Changed
    trajectory: AnyRow
    turns: list[AnyRow] = field(default_factory=list[AnyRow])
    calls: dict[str, list[AnyRow]] = field(default_factory=dict[str, list[AnyRow]])  # by turn
    answered: set[str] = field(default_factory=set[str])  # call ids that a result came back for
    changes: dict[str, EntropyChange] = field(default_factory=dict[str, EntropyChange])
    rewards: AnyRow | None = None
    dense: dict[str, float | None] = field(default_factory=dict[str, "float | None"])
    judged: tuple[str, ...] = ()  # ids of the turns that the outcome speaks of, first to last
    outcome_source: str | None = None  # score | answer
    hashes: dict[str, ModelHashes] = field(default_factory=dict[str, ModelHashes])  # by model


def list_changed(
    connection: Connection,
    wanted: TrajectoryFilter,
    *,
    after: tuple[int, str],
    until: int,
    limit: int,
) -> list[Changed]:
    """The next ``limit`` trajectories in the order of their last change: past ``after`` (a number
    and a trajectory id), and up to the number ``until``."""
    columns = trajectories.c
    query = (
        select(
            columns.id,
            columns.sequence,
            # What was stored past the writer has no number: it counts as the oldest.
            func.coalesce(commits.c.written_at, columns.updated_at).label("written_at"),
            columns.outcome.is_not(None).label("judged"),
        )
        .outerjoin(commits, commits.c.sequence == columns.sequence)
        .where(tuple_(columns.sequence, columns.id) > tuple_(*after), columns.sequence <= until)
        .where(*wanted.conditions(connection))
        .order_by(columns.sequence, columns.id)
        .limit(limit)
    )
    return [
        Changed(
            trajectory_id=row.id,
            sequence=row.sequence,
            written_at=row.written_at,
            judged=bool(row.judged),
        )
        for row in connection.execute(query)
    ]


def read_settled(connection: Connection, listed: Sequence[Changed]) -> list[StoredTrajectory]:
    """The listed trajectories, without those that have changed since: they settle anew."""
    ids = [each.trajectory_id for each in listed]
    query = select(trajectories).where(trajectories.c.id.in_(ids))
    found = {row.id: row for row in connection.execute(query)}
    unchanged = [
        (each, row)
        for each in listed
        if (row := found.get(each.trajectory_id)) is not None and row.sequence == each.sequence
    ]
    parts = _Parts.read(connection, [row.id for _, row in unchanged])
    return [parts.of(each, row) for each, row in unchanged]


def read_cursor(connection: Connection, sequence: int) -> Cursor | None:
    """The last commit up to this number."""
    query = select(commits).where(commits.c.sequence <= sequence)
    row = connection.execute(query.order_by(commits.c.sequence.desc()).limit(1)).first()
    return None if row is None else Cursor(sequence=row.sequence, written_at=row.written_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What hangs on some trajectories: by turn, or by trajectory where it says so."""

    turns: Mapping[str, list[AnyRow]]  # by trajectory, in the order of their index
    calls: Mapping[str, list[AnyRow]]
    results: Mapping[str, list[AnyRow]]
    changes: Mapping[str, list[AnyRow]]
    feedback: Mapping[str, AnyRow]  # by trajectory: the last one, which counts
    rewards: Mapping[str, AnyRow]  # by trajectory
    dense: Mapping[str, dict[str, float | None]]  # by trajectory, then by turn
    served: Sequence[tuple[str, int, ModelHashes]]

    @classmethod
    def read(cls, connection: Connection, ids: Sequence[str]) -> _Parts:
        """Those of the trajectories ``ids``."""

        def of_trajectories(table: Any, *order: Any) -> Iterable[AnyRow]:
            query = select(table).where(table.c.trajectory_id.in_(ids))
            return connection.execute(query.order_by(*order))

        def by_turn(table: Any, *order: Any) -> dict[str, list[AnyRow]]:
            query = select(table).join(turns, table.c.turn_id == turns.c.id)
            query = query.where(turns.c.trajectory_id.in_(ids)).order_by(*order)
            return _grouped(connection.execute(query), "turn_id")

        dense: defaultdict[str, dict[str, float | None]] = defaultdict(dict)
        for row in of_trajectories(call_rewards):
            dense[row.trajectory_id][row.turn_id] = row.dense
        return cls(
            turns=_grouped(of_trajectories(turns, turns.c.turn_index), "trajectory_id"),
            calls=by_turn(calls, calls.c.position),
            results=by_turn(results),
            changes=by_turn(changes),
            feedback={row.trajectory_id: row for row in of_trajectories(feedback, feedback.c.id)},
            rewards={row.trajectory_id: row for row in of_trajectories(rewards)},
            dense=dense,
            served=_served(connection),
        )

    def of(self, listed: Changed, row: AnyRow) -> StoredTrajectory:
        """The trajectory of this row, whole."""
        own = self.turns.get(row.id, [])
        said = self.feedback.get(row.id)
        judged = () if said is None or not own else judged_path(own, said.turn_id)
        return StoredTrajectory(
            listed=listed,
            trajectory=row,
            turns=own,
            calls={turn.id: self.calls[turn.id] for turn in own if turn.id in self.calls},
            answered={result.call_id for turn in own for result in self.results.get(turn.id, ())},
            changes={
                turn.id: _change(self.changes[turn.id][0])
                for turn in own
                if turn.id in self.changes
            },
            rewards=self.rewards.get(row.id),
            dense=self.dense.get(row.id, {}),
            judged=tuple(turn.id for turn in judged),
            outcome_source=None if said is None else _source(said),
            hashes={
                name: hashes
                for name, sequence, hashes in self.served
                if sequence <= listed.sequence
            },
        )


def _grouped(rows: Iterable[AnyRow], column: str) -> dict[str, list[AnyRow]]:
    """The rows by the value of a column, in their order."""
    groups: defaultdict[str, list[AnyRow]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups


def _served(connection: Connection) -> list[tuple[str, int, ModelHashes]]:
    """What was served under which name from which commit on, in that order."""
    return [
        (
            row.name,
            row.sequence,
            ModelHashes(tokenizer=row.tokenizer_hash, chat_template=row.chat_template_hash),
        )
        for row in connection.execute(select(models).order_by(models.c.sequence))
    ]


def _source(said: AnyRow) -> str:
    return "score" if said.answer is None else "answer"


def _change(row: AnyRow) -> EntropyChange:
    return load_change({column.name: getattr(row, column.name) for column in changes.c})

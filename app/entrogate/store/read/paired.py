"""Trajectories with calls beside their shadows: what calibration and evaluation read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, select

from entrogate.label.shadows import is_whole
from entrogate.store.codec import unpack_floats, unpack_ints
from entrogate.store.database import Database
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.paths import judged_path
from entrogate.store.read.pages import pages
from entrogate.store.schema import calls, feedback, models, shadows, trajectories, turns
from entrogate.types import Capture, Estimator

AnyRow: TypeAlias = "Row[*tuple[Any, ...]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShadow:
    """What the model would have said without the calls of a turn. ``capture`` begins at the first
    call; None where tokens are missing."""

    called: bool
    score: float | None
    judged_by: str | None
    ended: bool  # the answer is complete
    capture: Capture | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """One call as it was decided; ``features`` as JSON (`gate.features`)."""

    name: str
    features: str
    mode: str
    applied: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCallTurn:
    """A turn with calls."""

    turn_id: str
    model: str
    weight_version: str
    estimator: Estimator
    capture_gap: str | None
    calls: tuple[StoredCall, ...]
    shadow: StoredShadow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTrajectory:
    """A trajectory with calls: its turns with calls on the path that the outcome speaks of.

    ``scores`` are those of all its feedback, the last one last; ``tokenizer`` is the hash of what
    was served under its model's name when it last changed, "" where that is not known.
    """

    trajectory_id: str
    task_id: str | None
    incomplete_reason: str | None
    tokenizer: str
    scores: tuple[float, ...]
    turns: tuple[StoredCallTurn, ...]
    n_turns: int  # on the path, those without calls included
    fault: str | None = None  # why its turns cannot be read

    @property
    def outcome(self) -> float | None:
        """The last score; None without feedback."""
        return self.scores[-1] if self.scores else None


def iter_paired(
    database: Database, wanted: TrajectoryFilter, batch: int = 200
) -> Iterator[PairedTrajectory]:
    """Every trajectory with calls, by id; ``batch`` are read at a time. Blocks."""
    return pages(
        database,
        lambda connection, after, limit: _read(connection, wanted, after=after, limit=limit),
        start="",
        place=lambda trajectory: trajectory.trajectory_id,
        size=batch,
    )


def _read(
    connection: Connection, wanted: TrajectoryFilter, *, after: str, limit: int
) -> list[PairedTrajectory]:
    columns = trajectories.c
    query = (
        select(columns.id, columns.task_id, columns.incomplete_reason, columns.sequence)
        .where(columns.id > after, columns.n_calls > 0, *wanted.conditions(connection))
        .order_by(columns.id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    parts = _Parts.read(connection, [row.id for row in rows])
    return [parts.of(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What hangs on some trajectories."""

    turns: dict[str, list[AnyRow]]  # by trajectory, in the order of their index
    calls: dict[str, list[AnyRow]]  # by turn
    shadows: dict[str, list[AnyRow]]  # by turn
    feedback: dict[str, list[AnyRow]]  # by trajectory, the last one last
    served: list[AnyRow]

    @classmethod
    def read(cls, connection: Connection, ids: Sequence[str]) -> _Parts:
        """Those of the trajectories ``ids``."""
        own = (
            select(
                turns.c.id,
                turns.c.trajectory_id,
                turns.c.parent_id,
                turns.c.model,
                turns.c.weight_version,
                turns.c.estimator,
                turns.c.capture_gap,
            )
            .where(turns.c.trajectory_id.in_(ids))
            .order_by(turns.c.turn_index)
        )
        called = (
            select(calls.c.turn_id, calls.c.name, calls.c.features, calls.c.mode, calls.c.applied)
            .join(turns, calls.c.turn_id == turns.c.id)
            .where(turns.c.trajectory_id.in_(ids))
            .order_by(calls.c.position)
        )
        told = select(feedback.c.trajectory_id, feedback.c.turn_id, feedback.c.score)
        told = told.where(feedback.c.trajectory_id.in_(ids)).order_by(feedback.c.id)
        beside = select(shadows).where(shadows.c.trajectory_id.in_(ids))
        return cls(
            turns=grouped(connection, own, "trajectory_id"),
            calls=grouped(connection, called, "turn_id"),
            shadows=grouped(connection, beside, "turn_id"),
            feedback=grouped(connection, told, "trajectory_id"),
            served=list(connection.execute(select(models).order_by(models.c.sequence)).all()),
        )

    def of(self, row: AnyRow) -> PairedTrajectory:
        """The trajectory of this row."""
        told = self.feedback.get(row.id, [])
        own = self.turns.get(row.id, [])
        path = judged_path(own, told[-1].turn_id if told else None) if own else []
        names = {turn.model for turn in path}
        hashes = [
            served.tokenizer_hash
            for served in self.served
            if served.name in names and served.sequence <= row.sequence
        ]
        made, fault = (), None
        try:
            made = tuple(self._turn(turn) for turn in path if turn.id in self.calls)
        except (ValueError, TypeError) as error:  # a damaged store
            fault = str(error)
        return PairedTrajectory(
            trajectory_id=row.id,
            task_id=row.task_id,
            incomplete_reason=row.incomplete_reason,
            tokenizer=hashes[-1] if hashes else "",
            scores=tuple(each.score for each in told),
            turns=made,
            n_turns=len(path),
            fault=fault,
        )

    def _turn(self, turn: AnyRow) -> StoredCallTurn:
        beside = self.shadows.get(turn.id)
        return StoredCallTurn(
            turn_id=turn.id,
            model=turn.model,
            weight_version=turn.weight_version,
            estimator=Estimator(turn.estimator),
            capture_gap=turn.capture_gap,
            calls=tuple(
                StoredCall(
                    name=call.name, features=call.features, mode=call.mode, applied=call.applied
                )
                for call in self.calls[turn.id]
            ),
            shadow=None if beside is None else _shadow(beside[0]),
        )


def grouped(connection: Connection, query: Any, column: str) -> dict[str, list[AnyRow]]:
    """The rows of ``query`` by the value in ``column``, in their order."""
    groups: defaultdict[str, list[AnyRow]] = defaultdict(list)
    for row in connection.execute(query):
        groups[getattr(row, column)].append(row)
    return groups


def _shadow(row: AnyRow) -> StoredShadow:
    return StoredShadow(
        called=row.called,
        score=row.score,
        judged_by=row.judged_by,
        ended=is_whole(row.finish_reason),
        capture=shadow_capture(row) if row.capture_gap is None else None,
    )


def shadow_capture(row: AnyRow) -> Capture:
    """What was captured of the shadow in this row of `shadows`."""
    lower = unpack_floats(row.entropy_lower)
    return Capture(
        token_ids=unpack_ints(row.token_ids),
        logprobs=unpack_floats(row.logprobs),
        entropy_lower=lower,
        entropy_upper=lower if row.entropy_upper is None else unpack_floats(row.entropy_upper),
        margin=unpack_floats(row.margin),
        tail_mass=unpack_floats(row.tail_mass),
        p_tool_call=unpack_floats(row.p_tool_call),
        estimator=Estimator(row.estimator),
        top_k=row.top_k,
    )

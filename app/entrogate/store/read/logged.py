"""Whole trajectories as logs of decisions: what was decided, what it cost, how it turned out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from entrogate.label.shadows import is_whole
from entrogate.store.database import Database
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.decisions import DecidedCall, decided_call
from entrogate.store.read.pages import pages
from entrogate.store.read.paired import AnyRow, grouped, shadow_capture
from entrogate.store.schema import calls, feedback, shadows, trajectories, turns
from entrogate.types import Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedShadow:
    """What the model would have said without the calls of a turn.

    It goes on after ``n_kept`` tokens of the turn. ``capture`` is of its own tokens, None where
    some are missing. ``score`` is None where nobody judged it.
    """

    called: bool
    score: float | None
    n_kept: int
    n_tokens: int
    duration_seconds: float
    ended: bool  # the answer is complete
    capture: Capture | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTurn:
    """One answer of the model: what it cost, and the decisions on its calls.

    ``n_tokens`` were sampled, with those thrown away. ``masked`` says that the gate acted on its
    tokens. Choices of one request share its ``request_id``, as do the answers of a replay.
    """

    request_id: str
    model: str
    weight_version: str
    created_at: float  # seconds since the epoch
    duration_seconds: float
    n_tokens: int
    masked: bool
    calls: tuple[DecidedCall, ...]
    shadow: LoggedShadow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTrajectory:
    """The turns of one trajectory in order; ``scores`` are those of its feedback, the last last.

    ``fault`` says why its decisions cannot be read.
    """

    trajectory_id: str
    task_id: str | None
    created_at: float  # seconds since the epoch
    incomplete_reason: str | None
    scores: tuple[float, ...]
    turns: tuple[LoggedTurn, ...]
    fault: str | None = None


def iter_logged(
    database: Database, wanted: TrajectoryFilter, batch: int = 200
) -> Iterator[LoggedTrajectory]:
    """Every trajectory, those without calls included, by id; ``batch`` at a time. Blocks."""
    return pages(
        database,
        lambda connection, after, limit: _read(connection, wanted, after=after, limit=limit),
        start="",
        place=lambda trajectory: trajectory.trajectory_id,
        size=batch,
    )


def _read(
    connection: Connection, wanted: TrajectoryFilter, *, after: str, limit: int
) -> list[LoggedTrajectory]:
    columns = trajectories.c
    query = (
        select(columns.id, columns.task_id, columns.created_at, columns.incomplete_reason)
        .where(columns.id > after, *wanted.conditions(connection))
        .order_by(columns.id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]
    own = grouped(connection, _turns(ids), "trajectory_id")
    decided = grouped(connection, _calls(ids), "turn_id")
    beside = grouped(connection, _shadows(ids), "turn_id")
    told = select(feedback.c.trajectory_id, feedback.c.score)
    told = told.where(feedback.c.trajectory_id.in_(ids)).order_by(feedback.c.id)
    scores = grouped(connection, told, "trajectory_id")
    found: list[LoggedTrajectory] = []
    for row in rows:
        fault, made = None, ()
        try:
            made = tuple(_turn(turn, decided, beside) for turn in own.get(row.id, []))
        except (ValueError, TypeError, RecursionError) as error:  # a damaged store
            fault = str(error)
        found.append(
            LoggedTrajectory(
                trajectory_id=row.id,
                task_id=row.task_id,
                created_at=row.created_at,
                incomplete_reason=row.incomplete_reason,
                scores=tuple(each.score for each in scores.get(row.id, [])),
                turns=made,
                fault=fault,
            )
        )
    return found


def _turns(ids: Sequence[str]) -> Any:
    names = ("id", "trajectory_id", "request_id", "model", "weight_version", "created_at")
    more = ("duration_seconds", "n_tokens", "wasted_tokens", "altered")
    query = select(*(turns.c[name] for name in (*names, *more)))
    return query.where(turns.c.trajectory_id.in_(ids)).order_by(turns.c.turn_index)


def _calls(ids: Sequence[str]) -> Any:
    query = select(calls).join(turns, turns.c.id == calls.c.turn_id)
    return query.where(turns.c.trajectory_id.in_(ids)).order_by(calls.c.position)


def _shadows(ids: Sequence[str]) -> Any:
    return select(shadows).where(shadows.c.trajectory_id.in_(ids))


def _turn(
    row: AnyRow, decided: dict[str, list[AnyRow]], beside: dict[str, list[AnyRow]]
) -> LoggedTurn:
    shadow = beside.get(row.id)
    return LoggedTurn(
        request_id=row.request_id,
        model=row.model,
        weight_version=row.weight_version,
        created_at=row.created_at,
        duration_seconds=row.duration_seconds,
        n_tokens=row.n_tokens + row.wasted_tokens,
        masked=row.altered != "[]",
        calls=tuple(decided_call(call) for call in decided.get(row.id, [])),
        shadow=None if shadow is None else _shadow(shadow[0]),
    )


def _shadow(row: AnyRow) -> LoggedShadow:
    return LoggedShadow(
        called=row.called,
        score=row.score,
        n_kept=row.n_kept,
        n_tokens=row.n_tokens,
        duration_seconds=row.duration_seconds,
        ended=is_whole(row.finish_reason),
        capture=shadow_capture(row) if row.capture_gap is None else None,
    )

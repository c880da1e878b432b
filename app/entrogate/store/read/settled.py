"""Reads whole trajectories in the order in which they settled: what an export takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, or_, select

from entrogate.store.codec import load_change
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.paths import judged_path
from entrogate.store.schema import (
    call_rewards,
    calls,
    changes,
    feedback,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrajectory:
    """A trajectory as stored: the row of each table, turns in the order of their index."""

    cursor: Cursor
    trajectory: AnyRow
    turns: list[AnyRow] = field(default_factory=list[AnyRow])
    calls: dict[str, list[AnyRow]] = field(default_factory=dict[str, list[AnyRow]])  # by turn
    answered: set[str] = field(default_factory=set[str])  # call ids that a result came back for
    changes: dict[str, EntropyChange] = field(default_factory=dict[str, EntropyChange])
    rewards: AnyRow | None = None
    dense: dict[str, float | None] = field(default_factory=dict[str, "float | None"])
    judged: tuple[str, ...] = ()  # ids of the turns that the outcome speaks of, first to last
    outcome_source: str | None = None  # score | answer


def list_settled(
    connection: Connection,
    settling: Settling,
    wanted: TrajectoryFilter,
    *,
    now: float,
    after: Cursor | None,
    limit: int,
) -> list[Cursor]:
    """The next ``limit`` trajectories that had settled by ``now``.

    This looks at every trajectory of the store, whatever the limit.
    """
    settled_at = _settled_at(settling)
    query = select(trajectories.c.id, settled_at.label("settled_at")).where(settled_at <= now)
    if after is not None:
        later = settled_at > after.settled_at
        same = and_(settled_at == after.settled_at, trajectories.c.id > after.trajectory_id)
        query = query.where(or_(later, same))
    query = query.where(*wanted.conditions(connection))
    rows = connection.execute(query.order_by(settled_at, trajectories.c.id).limit(limit))
    return [Cursor(settled_at=row.settled_at, trajectory_id=row.id) for row in rows]


def read_settled(
    connection: Connection, settling: Settling, listed: Sequence[Cursor]
) -> list[StoredTrajectory]:
    """The listed trajectories, but for those that have changed since: they settle anew."""
    settled_at = _settled_at(settling)
    ids = [cursor.trajectory_id for cursor in listed]
    query = select(trajectories, settled_at.label("settled_at")).where(trajectories.c.id.in_(ids))
    found = {row.id: row for row in connection.execute(query)}
    rows = [
        row
        for cursor in listed
        if (row := found.get(cursor.trajectory_id)) is not None
        and row.settled_at == cursor.settled_at
    ]
    return _with_parts(connection, rows)


def _settled_at(settling: Settling) -> ColumnElement[float]:
    columns = trajectories.c
    said_at = (
        select(func.coalesce(func.max(feedback.c.created_at), 0.0))
        .where(feedback.c.trajectory_id == columns.id)
        .scalar_subquery()
    )
    last = case((said_at > columns.updated_at, said_at), else_=columns.updated_at)
    return case(
        (columns.outcome.is_not(None), last + settling.quiet),
        else_=columns.updated_at + settling.patience,
    )


def _with_parts(connection: Connection, rows: Sequence[AnyRow]) -> list[StoredTrajectory]:
    ids = [row.id for row in rows]

    def grouped(table: Any, *order: Any) -> dict[str, list[AnyRow]]:
        """Rows that hang on turns, by turn."""
        query = select(table).join(turns, table.c.turn_id == turns.c.id)
        by_turn: defaultdict[str, list[AnyRow]] = defaultdict(list)
        query = query.where(turns.c.trajectory_id.in_(ids)).order_by(*order)
        for row in connection.execute(query):
            by_turn[row.turn_id].append(row)
        return by_turn

    turns_of: defaultdict[str, list[AnyRow]] = defaultdict(list)
    query = select(turns).where(turns.c.trajectory_id.in_(ids)).order_by(turns.c.turn_index)
    for turn in connection.execute(query):
        turns_of[turn.trajectory_id].append(turn)
    calls_of, results_of = grouped(calls, calls.c.position), grouped(results)
    changes_of = grouped(changes)
    said_of = {
        row.trajectory_id: row
        for row in connection.execute(
            select(feedback).where(feedback.c.trajectory_id.in_(ids)).order_by(feedback.c.id)
        )
    }
    rewards_of = {
        row.trajectory_id: row
        for row in connection.execute(select(rewards).where(rewards.c.trajectory_id.in_(ids)))
    }
    dense_of: defaultdict[str, dict[str, float | None]] = defaultdict(dict)
    for row in connection.execute(
        select(call_rewards).where(call_rewards.c.trajectory_id.in_(ids))
    ):
        dense_of[row.trajectory_id][row.turn_id] = row.dense
    found: list[StoredTrajectory] = []
    for row in rows:
        own = turns_of[row.id]
        said = said_of.get(row.id)
        judged = () if said is None or not own else judged_path(own, said.turn_id)
        found.append(
            StoredTrajectory(
                cursor=Cursor(settled_at=row.settled_at, trajectory_id=row.id),
                trajectory=row,
                turns=own,
                calls={turn.id: calls_of[turn.id] for turn in own if turn.id in calls_of},
                answered={r.call_id for turn in own for r in results_of.get(turn.id, ())},
                changes={
                    turn.id: _change(changes_of[turn.id][0])
                    for turn in own
                    if turn.id in changes_of
                },
                rewards=rewards_of.get(row.id),
                dense=dense_of[row.id],
                judged=tuple(turn.id for turn in judged),
                outcome_source=None if said is None else _source(said),
            )
        )
    return found


def _source(said: AnyRow) -> str:
    return "score" if said.answer is None else "answer"


def _change(row: AnyRow) -> EntropyChange:
    return load_change({column.name: getattr(row, column.name) for column in changes.c})

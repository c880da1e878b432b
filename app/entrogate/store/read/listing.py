"""Pages of trajectories, a summary each."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select, tuple_

from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.rows import ListedTrajectory
from entrogate.store.schema import rewards, trajectories

MAX_PAGE = 1000

_COLUMNS = tuple(str(column.name) for column in trajectories.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Trajectory summaries, newest first; ``next_cursor`` is None on the last page."""

    items: list[ListedTrajectory]
    next_cursor: str | None


def list_trajectories(
    connection: Connection,
    wanted: TrajectoryFilter,
    *,
    limit: int,
    cursor: str | None,
    oldest_first: bool = False,
) -> Page:
    """One page. Raises ValueError for a limit or a cursor that cannot be used."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}, it must be between 1 and {MAX_PAGE}")
    query = select(trajectories, rewards.c.sparse).outerjoin(
        rewards, rewards.c.trajectory_id == trajectories.c.id
    )
    query = query.where(*wanted.conditions(connection))
    created_at, id_ = trajectories.c.created_at, trajectories.c.id
    if cursor is not None:
        last_created_at, last_id = _parse_cursor(cursor)
        last = tuple_(last_created_at, last_id)
        place = tuple_(created_at, id_)
        query = query.where(place > last if oldest_first else place < last)
    order = (created_at, id_) if oldest_first else (created_at.desc(), id_.desc())
    rows = connection.execute(query.order_by(*order).limit(limit + 1)).all()
    items = [ListedTrajectory(**summary(row), sparse_reward=row.sparse) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(items=items, next_cursor=_cursor(rows[limit - 1]) if more else None)


def _cursor(row: Row[*tuple[Any, ...]]) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at!r} {row.id}".encode()).decode()


def _parse_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, _, id_ = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return float(created_at), id_
    except (binascii.Error, ValueError):
        raise ValueError("cursor is not one that an earlier page gave as next_cursor") from None


def summary(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """The fields of a `TrajectorySummary`, from a row with the columns of its table."""
    fields = {name: getattr(row, name) for name in _COLUMNS}
    metadata = fields["metadata"]
    fields["metadata"] = None if metadata is None else orjson.loads(metadata)
    fields["complete"] = fields["incomplete_reason"] is None
    return fields

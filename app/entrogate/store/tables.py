"""Writing turns: finds where they go, then inserts a whole batch table by table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, case, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from entrogate.store.heads import head_of_record
from entrogate.store.placement import Extent, Placement, Tail
from entrogate.store.rewards import refresh_rewards
from entrogate.store.rows import (
    SUMS,
    Row,
    call_rows,
    change_rows,
    merge,
    result_rows,
    toolset_id,
    trajectory_row,
    turn_row,
)
from entrogate.store.schema import calls, changes, results, toolsets, trajectories, turns
from entrogate.types import TurnHead, TurnRecord

_KNOWN_TOOLSETS = 4096

_child = turns.alias("child")
_FIND_EXTENTS = (
    select(
        trajectories.c.id,
        trajectories.c.n_turns,
        trajectories.c.n_branches,
        trajectories.c.outcome,
    )
    .where(trajectories.c.id.in_(bindparam("ids", expanding=True)))
    .with_for_update()
)
_FIND_TAILS = select(
    turns.c.id,
    turns.c.trajectory_id,
    turns.c.branch_index,
    (turns.c.n_prompt_tokens + turns.c.n_tokens).label("sequence_length"),
    turns.c.sequence_hash,
    exists()
    .where(_child.c.parent_id == turns.c.id, _child.c.branch_index == turns.c.branch_index)
    .label("continued"),
).where(turns.c.id.in_(bindparam("ids", expanding=True)))


class TurnTables:
    """Inserts turns; belongs to the writer's thread."""

    def __init__(self, dialect: str) -> None:
        insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
        self._upsert_trajectories = _upsert(insert)
        self._insert_toolsets: Insert = insert(toolsets).on_conflict_do_nothing()
        self._known_toolsets: set[bytes] = set()

    def write(self, connection: Connection, records: Sequence[TurnRecord]) -> list[TurnHead]:
        """Insert the turns, in order, inside the caller's transaction; return their heads."""
        extents, judged = _find_extents(connection, records)
        placement = Placement(extents, _find_tails(connection, records))
        places = [placement.place(record) for record in records]
        touched: dict[str, Row] = {}
        for record, place in zip(records, places, strict=True):
            row = trajectory_row(record, place)
            known = touched.get(record.trajectory_id)
            touched[record.trajectory_id] = row if known is None else merge(known, row)
        connection.execute(self._upsert_trajectories, list(touched.values()))
        self._write_toolsets(connection, records)
        rows = [turn_row(record, place) for record, place in zip(records, places, strict=True)]
        connection.execute(_INSERT_TURNS, rows)
        for statement, rows_of in _INSERT_PARTS:
            parts = [row for record in records for row in rows_of(record)]
            if parts:
                connection.execute(statement, parts)
        for trajectory_id in judged:
            refresh_rewards(connection, trajectory_id)
        return [
            head_of_record(record, place.turn_index, place.branch_index)
            for record, place in zip(records, places, strict=True)
        ]

    def _write_toolsets(self, connection: Connection, records: Sequence[TurnRecord]) -> None:
        new: dict[bytes, str] = {}
        for record in records:
            if record.tools is not None:
                key = toolset_id(record.tools)
                if key is not None and key not in self._known_toolsets:
                    new[key] = record.tools.decode()
        if new:
            rows = [{"id": key, "content": content} for key, content in new.items()]
            connection.execute(self._insert_toolsets, rows)

    def committed(self, records: Sequence[TurnRecord]) -> None:
        """The transaction with these turns is through: their tools need no second insert."""
        if len(self._known_toolsets) > _KNOWN_TOOLSETS:
            self._known_toolsets.clear()
        keys = (toolset_id(record.tools) for record in records)
        self._known_toolsets.update(key for key in keys if key is not None)


_INSERT_TURNS = turns.insert()
_INSERT_PARTS = (
    (calls.insert(), call_rows),
    (results.insert(), result_rows),
    (changes.insert(), change_rows),
)


def _upsert(insert: Any) -> Insert:
    new = insert(trajectories)
    stored, added = trajectories.c, new.excluded
    update: dict[str, Any] = {name: stored[name] + added[name] for name in SUMS}
    # SQLite's two-argument max() and Postgres' greatest() have no common name.
    for name in ("n_branches", "updated_at"):
        update[name] = case((added[name] > stored[name], added[name]), else_=stored[name])
    for name in ("incomplete_reason", "mode", "task_id", "metadata"):
        update[name] = func.coalesce(stored[name], added[name])
    return new.on_conflict_do_update(index_elements=["id"], set_=update)


def _find_extents(
    connection: Connection, records: Sequence[TurnRecord]
) -> tuple[dict[str, Extent], list[str]]:
    """The stored extents, and the trajectories among them that have an outcome."""
    ids = list({record.trajectory_id for record in records})
    rows = connection.execute(_FIND_EXTENTS, {"ids": ids}).all()
    extents = {row.id: Extent(n_turns=row.n_turns, n_branches=row.n_branches) for row in rows}
    return extents, [row.id for row in rows if row.outcome is not None]


def _find_tails(connection: Connection, records: Sequence[TurnRecord]) -> dict[str, Tail]:
    ids = list({record.parent.turn_id for record in records if record.parent is not None})
    if not ids:
        return {}
    return {
        row.id: Tail(
            trajectory_id=row.trajectory_id,
            branch_index=row.branch_index,
            sequence_length=row.sequence_length,
            sequence_hash=row.sequence_hash,
            continued=bool(row.continued),
        )
        for row in connection.execute(_FIND_TAILS, {"ids": ids})
    }

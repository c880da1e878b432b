"""Writing turns: finds where they go, then inserts a whole batch table by table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Connection,
    Dialect,
    Insert,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPICursor

from entrogate.access import digest_of_trajectory, tenant_of
from entrogate.store import postgres
from entrogate.store.admin.audit import Act, Deed
from entrogate.store.commits import insert_commit
from entrogate.store.heads import head_of_record
from entrogate.store.schema import (
    audit,
    calls,
    changes,
    erasures,
    results,
    toolsets,
    trajectories,
    turns,
)
from entrogate.store.write.placement import Extent, Place, Placement, Tail
from entrogate.store.write.rewards import refresh_rewards
from entrogate.store.write.rows import (
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
from entrogate.types import TurnHead, TurnRecord

_KNOWN_TOOLSETS = 4096


class TurnTables:
    """Inserts turns; belongs to the writer's thread.

    The statements are SQLAlchemy's, compiled once, and run on the driver's cursor: at one turn per
    commit, executing them through SQLAlchemy costs more than SQLite itself (docs/decisions).
    """

    def __init__(self, dialect: Dialect) -> None:
        self._on_postgres = dialect.name == "postgresql"
        insert: Any = postgresql.insert if self._on_postgres else sqlite.insert
        counted = [column.name for column in trajectories.c if column.name != "outcome"]
        self._insert_commit = _compiled(insert_commit(dialect), dialect)
        self._find_extents = _compiled(_extents(dialect), dialect)
        self._find_tails = _compiled(_tails(dialect), dialect)
        self._upsert_trajectories = _compiled(_upsert(insert), dialect, counted)
        self._insert_toolsets = _compiled(insert(toolsets).on_conflict_do_nothing(), dialect)
        self._find_erased = _compiled(
            select(erasures.c.digest).where(erasures.c.digest.in_(_listed(dialect))), dialect
        )
        named = [column.name for column in audit.c if column.name != "id"]
        self._insert_audit = _compiled(audit.insert(), dialect, named)
        self._insert_turns = _compiled(turns.insert(), dialect)
        self._parts = [
            (_compiled(table.insert(), dialect), rows_of)
            for table, rows_of in (
                (calls, call_rows),
                (results, result_rows),
                (changes, change_rows),
            )
        ]
        self._known_toolsets: set[bytes] = set()

    def write(self, connection: Connection, records: Sequence[TurnRecord]) -> list[TurnHead | None]:
        """Insert the turns, in order, inside the caller's transaction; return their heads.

        A turn whose trajectory was erased is not stored and has none.
        """
        try:
            with postgres.pipelined(connection) if self._on_postgres else nullcontext():
                cursor = connection.connection.cursor()
                placed, judged = self._insert(connection, cursor, records)
                cursor.close()
            for trajectory_id in judged:
                refresh_rewards(connection, trajectory_id)
        except Exception:
            self._known_toolsets.clear()  # another process may have removed some
            raise
        heads = {
            record.turn_id: head_of_record(record, place.turn_index, place.branch_index)
            for record, place in placed
        }
        return [heads.get(record.turn_id) for record in records]

    def write_again(
        self, connection: Connection, records: Sequence[TurnRecord]
    ) -> list[TurnHead | None]:
        """Like `write`, for turns some of which may be stored by an earlier try: None for those."""
        query = select(turns.c.id).where(turns.c.id.in_([record.turn_id for record in records]))
        stored = set(connection.execute(query).scalars())
        heads = iter(self.write(connection, [r for r in records if r.turn_id not in stored]))
        return [None if record.turn_id in stored else next(heads) for record in records]

    def _insert(
        self, connection: Connection, cursor: DBAPICursor, records: Sequence[TurnRecord]
    ) -> tuple[list[tuple[TurnRecord, Place]], list[str]]:
        """Where each turn went, and the trajectories among theirs that have an outcome."""
        numbering = self._begin_commit(connection)
        extents, judged = self._read_extents(cursor, records)
        sequence: int = numbering.fetchall()[0][0]
        numbering.close()
        begun = {record.trajectory_id for record in records} - extents.keys()
        if begun:
            # Read after the rows above are locked: who erases one of them has ended by now.
            erased = self._read_erased(cursor, begun)
            records = [record for record in records if record.trajectory_id not in erased]
            begun -= erased
        if not records:
            return [], []
        placement = Placement(extents, self._read_tails(cursor, records))
        placed = [(record, placement.place(record)) for record in records]
        touched: dict[str, Row] = {}
        for record, place in placed:
            row = trajectory_row(record, place, sequence)
            known = touched.get(record.trajectory_id)
            touched[record.trajectory_id] = row if known is None else merge(known, row)
        # Every process locks rows in the order of their keys, so that none waits in a circle.
        cursor.executemany(self._upsert_trajectories, [touched[id_] for id_ in sorted(touched)])
        self._write_toolsets(cursor, records)
        cursor.executemany(self._insert_turns, [turn_row(*each) for each in placed])
        deeds = _begun(placed, begun)
        if deeds:
            cursor.executemany(self._insert_audit, deeds)
        for statement, rows_of in self._parts:
            rows = [row for record in records for row in rows_of(record)]
            if rows:
                cursor.executemany(statement, rows)
        return placed, judged

    def _begin_commit(self, connection: Connection) -> DBAPICursor:
        """Takes the number of this transaction: its answer comes with that of the next query."""
        cursor = connection.connection.cursor()
        cursor.execute(self._insert_commit, {} if self._on_postgres else {"now": time.time()})
        return cursor

    def _read_extents(
        self, cursor: DBAPICursor, records: Sequence[TurnRecord]
    ) -> tuple[dict[str, Extent], list[str]]:
        """The stored extents, and the trajectories among them that have an outcome."""
        cursor.execute(self._find_extents, _ids({record.trajectory_id for record in records}))
        rows = cursor.fetchall()
        extents = {row[0]: Extent(n_turns=row[1], n_branches=row[2]) for row in rows}
        return extents, [row[0] for row in rows if row[3] is not None]

    def _read_erased(self, cursor: DBAPICursor, trajectory_ids: set[str]) -> set[str]:
        """Those among them that were erased."""
        by_digest = {digest_of_trajectory(id_): id_ for id_ in trajectory_ids}
        cursor.execute(self._find_erased, _ids(set(by_digest)))
        return {by_digest[row[0]] for row in cursor.fetchall()}

    def _read_tails(self, cursor: DBAPICursor, records: Sequence[TurnRecord]) -> dict[str, Tail]:
        ids = {record.parent.turn_id for record in records if record.parent is not None}
        if not ids:
            return {}
        cursor.execute(self._find_tails, _ids(ids))
        return {
            row[0]: Tail(
                trajectory_id=row[1],
                branch_index=row[2],
                sequence_length=row[3],
                sequence_hash=bytes(row[4]),
                continued=bool(row[5]),
            )
            for row in cursor.fetchall()
        }

    def _write_toolsets(self, cursor: DBAPICursor, records: Sequence[TurnRecord]) -> None:
        new: dict[bytes, str] = {}
        for record in records:
            if record.tools is not None:
                key = toolset_id(record.tools)
                if key is not None and key not in self._known_toolsets:
                    new[key] = record.tools.decode()
        if new:
            rows = [{"id": key, "content": new[key]} for key in sorted(new)]
            cursor.executemany(self._insert_toolsets, rows)

    def committed(self, records: Sequence[TurnRecord]) -> None:
        """The transaction with these turns is through: their tools need no second insert."""
        if len(self._known_toolsets) > _KNOWN_TOOLSETS:
            self._known_toolsets.clear()
        keys = (toolset_id(record.tools) for record in records)
        self._known_toolsets.update(key for key in keys if key is not None)


def _begun(placed: Sequence[tuple[TurnRecord, Place]], begun: set[str]) -> list[Row]:
    """Entries of the audit for the trajectories that these turns begin, where keys are in use."""
    return [
        Deed(
            actor=record.key_id,
            action=Act.BEGIN,
            target=record.trajectory_id,
            tenant=tenant_of(record.trajectory_id),
        ).row()
        for record, place in placed
        if record.key_id is not None and record.trajectory_id in begun and place.turn_index == 0
    ]


def _compiled(statement: Any, dialect: Dialect, columns: list[str] | None = None) -> str:
    return str(statement.compile(dialect=dialect, column_keys=columns))


def _ids(values: set[str]) -> dict[str, str]:
    return {"ids": orjson.dumps(list(values)).decode()}


def _listed(dialect: Dialect) -> Select[str]:
    """The strings of the JSON list bound as ``ids``: one statement for a list of any length."""
    ids = bindparam("ids", type_=Text())
    if dialect.name == "postgresql":
        elements = func.json_array_elements_text(cast(ids, JSON))
    else:
        elements = func.json_each(ids)
    return select(elements.table_valued("value").c.value)


def _extents(dialect: Dialect) -> Select[*tuple[Any, ...]]:
    stored = trajectories.c
    query = select(stored.id, stored.n_turns, stored.n_branches, stored.outcome)
    query = query.where(stored.id.in_(_listed(dialect))).order_by(stored.id)
    return query.with_for_update(key_share=True)


def _tails(dialect: Dialect) -> Select[*tuple[Any, ...]]:
    child = turns.alias("child")
    continues = (child.c.parent_id == turns.c.id) & (child.c.branch_index == turns.c.branch_index)
    return select(
        turns.c.id,
        turns.c.trajectory_id,
        turns.c.branch_index,
        turns.c.n_prompt_tokens + turns.c.n_tokens,
        turns.c.sequence_hash,
        exists().where(continues),
    ).where(turns.c.id.in_(_listed(dialect)))


def _upsert(insert: Any) -> Insert:
    new = insert(trajectories)
    stored, added = trajectories.c, new.excluded
    update: dict[str, Any] = {name: stored[name] + added[name] for name in SUMS}
    # SQLite's two-argument max() and Postgres' greatest() have no common name.
    for name in ("n_branches", "updated_at", "sequence"):
        update[name] = case((added[name] > stored[name], added[name]), else_=stored[name])
    for name in ("incomplete_reason", "mode", "task_id", "metadata"):
        update[name] = func.coalesce(stored[name], added[name])
    # As parameters the two numbers would have no value.
    one, zero = literal_column("1", Integer), literal_column("0", Integer)
    changed = case((stored.policy_version != added.policy_version, one), else_=zero)
    update["policy_version"] = added.policy_version
    update["policy_changes"] = stored.policy_changes + added.policy_changes + changed
    return new.on_conflict_do_update(index_elements=["id"], set_=update)

"""Heads of earlier turns: a bounded cache in front of the database.

The cache belongs to the event loop's thread. A call id names a turn that does not change. The
latest turn of a trajectory or with a fingerprint does, so it is taken from the cache only where
this process is the only one that writes (SQLite).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row, Select, exists, select

from entrogate.store.audited import is_audited
from entrogate.store.codec import load_segment
from entrogate.store.schema import calls, trajectories, turns
from entrogate.types import Action, TurnHead, TurnRecord

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """A dict that forgets what was not used for longest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of ``key``, which now counts as just used; None where it is not held."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Hold ``value``; past the limit the least recently used entry is dropped."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._limit:
            self._items.popitem(last=False)

    def clear(self) -> None:
        """Drop all entries."""
        self._items.clear()

    def __len__(self) -> int:
        return len(self._items)


class HeadCache:
    """Heads by call id, by fingerprint and by trajectory, ``limit`` entries each."""

    def __init__(self, limit: int) -> None:
        self.by_call: Lru[str, TurnHead] = Lru(limit)
        self.by_fingerprint: Lru[bytes, TurnHead] = Lru(limit)
        self.by_trajectory: Lru[str, TurnHead] = Lru(limit)

    def clear(self) -> None:
        """Forget every head: some may be of what was erased."""
        self.by_call.clear()
        self.by_fingerprint.clear()
        self.by_trajectory.clear()

    def remember(self, record: TurnRecord, head: TurnHead) -> None:
        """Make ``head`` findable by its calls, its fingerprint and its trajectory.

        A turn that failed is not the head of its trajectory: the next one continues from before it.
        """
        for call in record.calls:
            self.by_call.put(call.call_id, head)
        self.by_fingerprint.put(record.fingerprint, head)
        if record.error is None:
            self.by_trajectory.put(record.trajectory_id, head)


def head_of_record(record: TurnRecord, turn_index: int, branch_index: int) -> TurnHead:
    """The head that linkage keeps of a turn."""
    return TurnHead(
        turn_id=record.turn_id,
        trajectory_id=record.trajectory_id,
        turn_index=turn_index,
        branch_index=branch_index,
        n_messages=record.n_messages,
        sequence_length=len(record.prompt_token_ids) + len(record.capture),
        sequence_hash=record.sequence_hash,
        segment=record.segment,
        capture_complete=record.complete,
        has_calls=has_calls(record),
        weight_version=record.weight_version,
        policy_version=record.policy_version,
        audited=any(call.decision.is_audited for call in record.calls)
        or (record.parent is not None and record.parent.audited),
    )


def has_calls(record: TurnRecord) -> bool:
    """Whether a call of this turn went ahead, so that a result can change the entropy."""
    return any(call.decision.applied is not Action.SUPPRESS for call in record.calls)


_beside, _let_through = turns.alias("beside"), calls.alias("let_through")
_AUDITED = exists(
    select(_beside.c.id)
    .join(_let_through, _let_through.c.turn_id == _beside.c.id)
    .where(_beside.c.trajectory_id == turns.c.trajectory_id, is_audited(_let_through))
    .correlate(turns)
)
_HEAD = (
    turns.c.id,
    turns.c.trajectory_id,
    turns.c.turn_index,
    turns.c.branch_index,
    turns.c.n_messages,
    (turns.c.n_prompt_tokens + turns.c.n_tokens).label("sequence_length"),
    turns.c.sequence_hash,
    turns.c.segment,
    turns.c.capture_gap,
    turns.c.has_calls,
    turns.c.weight_version,
    trajectories.c.policy_version,
    _AUDITED.label("audited"),
)
_TURNS = turns.join(trajectories, trajectories.c.id == turns.c.trajectory_id)
_CALLS = _TURNS.join(calls, calls.c.turn_id == turns.c.id)


def read_head_of_call(connection: Connection, call_id: str) -> TurnHead | None:
    """The turn that made the call ``call_id``; None where it is not stored."""
    query = select(*_HEAD).select_from(_CALLS)
    return _first(connection, query.where(calls.c.id == call_id))


def read_heads_of_calls(connection: Connection, call_ids: Sequence[str]) -> dict[str, TurnHead]:
    """The heads of those calls that are stored, by the call's id, in one statement."""
    query = select(*_HEAD, calls.c.id.label("call_id")).select_from(_CALLS)
    rows = connection.execute(query.where(calls.c.id.in_(call_ids)))
    return {row.call_id: _head(row) for row in rows}


def read_head_of_turn(connection: Connection, turn_id: str) -> TurnHead | None:
    """The turn ``turn_id`` as a head; None where it is not stored."""
    return _first(connection, select(*_HEAD).select_from(_TURNS).where(turns.c.id == turn_id))


def read_head_of_fingerprint(connection: Connection, fingerprint: bytes) -> TurnHead | None:
    """The latest turn with this history."""
    query = select(*_HEAD).select_from(_TURNS).where(turns.c.fingerprint == fingerprint)
    latest = (turns.c.created_at.desc(), turns.c.turn_index.desc())
    return _first(connection, query.order_by(*latest).limit(1))


def read_head_of_trajectory(connection: Connection, trajectory_id: str) -> TurnHead | None:
    """The latest turn that did not break off."""
    query = select(*_HEAD).select_from(_TURNS)
    query = query.where(turns.c.trajectory_id == trajectory_id, turns.c.error.is_(None))
    return _first(connection, query.order_by(turns.c.turn_index.desc()).limit(1))  # clocks jump


def _first(connection: Connection, query: Select[*tuple[Any, ...]]) -> TurnHead | None:
    row = connection.execute(query).first()
    return None if row is None else _head(row)


def _head(row: Row[*tuple[Any, ...]]) -> TurnHead:
    return TurnHead(
        turn_id=row.id,
        trajectory_id=row.trajectory_id,
        turn_index=row.turn_index,
        branch_index=row.branch_index,
        n_messages=row.n_messages,
        sequence_length=row.sequence_length,
        sequence_hash=row.sequence_hash,
        segment=load_segment(row.segment),
        capture_complete=row.capture_gap is None,
        has_calls=row.has_calls,
        weight_version=row.weight_version,
        policy_version=row.policy_version,
        audited=row.audited,
    )

"""What was said up to one answer, as the client saw it: the state behind `previous_response_id`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, select

from entrogate.store.heads import read_head_of_turn
from entrogate.store.schema import trajectories, turns
from entrogate.types import TurnHead

_COLUMNS = (
    turns.c.id,
    turns.c.parent_id,
    turns.c.replayed,
    turns.c.n_messages,
    turns.c.params,
    turns.c.new_messages,
    turns.c.response,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Chat messages up to an answer, without the instructions it was given, and its turn."""

    messages: list[dict[str, Any]]
    head: TurnHead


def read_conversation(connection: Connection, response_id: str, tenant: str) -> Conversation | None:
    """None where no such answer of ``tenant`` was stored for being gone on with."""
    named = select(turns.c.trajectory_id, turns.c.request_id)
    named = named.join(trajectories, trajectories.c.id == turns.c.trajectory_id).where(
        turns.c.response_id == response_id,
        turns.c.choice_index == 0,
        trajectories.c.tenant == tenant,
    )
    found = connection.execute(named.order_by(turns.c.turn_index.desc()).limit(1)).first()
    if found is None:
        return None
    # A streamed answer that began with a replayed call has the id of the replayed turn.
    rows = connection.execute(
        select(*_COLUMNS, turns.c.request_id)
        .where(turns.c.trajectory_id == found.trajectory_id)
        .order_by(turns.c.turn_index)
    ).all()
    last = [r for r in rows if r.request_id == found.request_id and not r.replayed]
    if not last or not _door(last[-1]).get("stored"):
        return None
    head = read_head_of_turn(connection, last[-1].id)
    if head is None:
        return None
    return Conversation(messages=_said(_chain(rows, last[-1])), head=head)


def _chain(rows: Any, last: Row[*tuple[Any, ...]]) -> list[Row[*tuple[Any, ...]]]:
    """The turns that lead to ``last``, the first one first."""
    by_id = {row.id: row for row in rows}
    chain = [last]
    while (parent := by_id.get(chain[-1].parent_id)) is not None:
        chain.append(parent)
    return chain[::-1]


def _said(chain: list[Row[*tuple[Any, ...]]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    instructed = replayed = False
    for row in chain:
        new = orjson.loads(row.new_messages)
        if replayed:
            new = []  # the results that were fed back, which the client never saw
        elif len(new) + 1 == row.n_messages:  # a first turn, or a history that was rewritten
            messages, instructed = [], bool(_door(row).get("instructions"))
        messages += new
        replayed = row.replayed
        if not replayed:
            messages.append(orjson.loads(row.response))
    return messages[1:] if instructed else messages


def _door(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return orjson.loads(row.params).get("door") or {}

"""What was said up to one answer, as the client saw it: the state behind `/v1/responses`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from entrogate.store.heads import read_head_of_turn
from entrogate.store.schema import toolsets, trajectories, turns
from entrogate.types import StoredAnswer, TurnHead
from entrogate.wire.body import from_json

_COLUMNS = (
    turns.c.id,
    turns.c.parent_id,
    turns.c.replayed,
    turns.c.n_messages,
    turns.c.params,
    turns.c.new_messages,
    turns.c.response,
)
_ANSWER = (
    turns.c.created_at,
    turns.c.duration_seconds,
    turns.c.model,
    turns.c.finish_reason,
    turns.c.error,
    turns.c.n_prompt_tokens,
    turns.c.n_tokens,
    turns.c.params,
    turns.c.response,
    toolsets.c.content.label("tools"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Chat messages up to an answer, without the instructions it was given, and its turn."""

    messages: list[dict[str, Any]]
    instructions: str | None
    head: TurnHead


def read_answer(connection: Connection, response_id: str, tenant: str) -> StoredAnswer | None:
    """None where no such answer was stored for being shown again."""
    conversation = read_conversation(connection, response_id, tenant)
    if conversation is None:
        return None
    query = select(*_ANSWER).join(toolsets, isouter=True)
    found = connection.execute(query.where(turns.c.id == conversation.head.turn_id))
    values: dict[str, Any] = dict(found.mappings().one())
    return StoredAnswer(
        message=from_json(values.pop("response")),
        tools=from_json(values.pop("tools") or "[]"),
        params=from_json(values.pop("params")),
        instructions=conversation.instructions,
        **values,
    )


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
    messages, instructions = _said(_chain(rows, last[-1]))
    return Conversation(messages=messages, instructions=instructions, head=head)


def _chain(rows: Any, last: Row[*tuple[Any, ...]]) -> list[Row[*tuple[Any, ...]]]:
    """The turns that lead to ``last``, the first one first."""
    by_id = {row.id: row for row in rows}
    chain = [last]
    while (parent := by_id.get(chain[-1].parent_id)) is not None:
        chain.append(parent)
    return chain[::-1]


def _said(
    chain: list[Row[*tuple[Any, ...]]],
) -> tuple[list[dict[str, Any]], str | None]:
    """The messages, without the instructions of the last request that changed them; these."""
    messages: list[dict[str, Any]] = []
    instructed = replayed = False
    length: int | None = None
    for row in chain:
        new = from_json(row.new_messages)
        if replayed:
            new = []  # the results that were fed back, which the client never saw
        elif len(new) + 1 == row.n_messages:  # a first turn, or a history that was rewritten
            messages, door = [], _door(row)
            instructed, length = bool(door.get("instructions")), door.get("instructions_characters")
        messages += new
        replayed = row.replayed
        if not replayed:
            messages.append(from_json(row.response))
    if not instructed:
        return messages, None
    instructions, others = _parted(messages[0], length)
    return [*others, *messages[1:]], instructions


def _parted(system: dict[str, Any], length: int | None) -> tuple[str, list[dict[str, Any]]]:
    """The instructions, and the system message of what else was joined to them, if anything was."""
    content: str | list[dict[str, Any]] = system["content"]
    if isinstance(content, list):
        return content[0]["text"], [{**system, "content": content[1:]}]
    if length is None:
        return content, []
    rest = content[length:].removeprefix("\n\n")
    return content[:length], [{**system, "content": rest}]


def _door(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return from_json(row.params).get("door") or {}

"""One trajectory, read back whole as a JSON-able dict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, RowMapping, select

from entrogate.store.admin.erasure import unknown
from entrogate.store.codec import load_spans, unpack_floats, unpack_ints
from entrogate.store.read.listing import summary
from entrogate.store.schema import (
    call_rewards,
    calls,
    changes,
    feedback,
    results,
    rewards,
    toolsets,
    trajectories,
    turns,
)
from entrogate.types import IntArray, SpanKind
from entrogate.wire.body import from_json

_BLOBS = (
    turns.c.prompt_token_ids,
    turns.c.token_ids,
    turns.c.logprobs,
    turns.c.entropy_lower,
    turns.c.entropy_upper,
    turns.c.margin,
    turns.c.tail_mass,
    turns.c.p_tool_call,
)
_SUMMARY = tuple(column for column in turns.c if column not in _BLOBS)
_SCALARS = (
    "turn_index",
    "branch_index",
    "parent_id",
    "request_id",
    "response_id",
    "choice_index",
    "created_at",
    "duration_seconds",
    "model",
    "weight_version",
    "finish_reason",
    "error",
    "capture_gap",
    "replayed",
    "n_messages",
    "n_prompt_tokens",
    "n_tokens",
    "wasted_tokens",
    "estimator",
    "top_k",
    "key_id",
)


def get_trajectory(connection: Connection, trajectory_id: str, *, tokens: bool) -> dict[str, Any]:
    """Everything stored of one trajectory; token arrays only with ``tokens``.

    Raises `UnknownRecord`, `ErasedRecord`.
    """
    row = connection.execute(select(trajectories).where(trajectories.c.id == trajectory_id)).first()
    if row is None:
        raise unknown(connection, trajectory_id)
    columns = turns.c if tokens else _SUMMARY
    turn_rows = connection.execute(
        select(*columns).where(turns.c.trajectory_id == trajectory_id).order_by(turns.c.turn_index)
    ).all()
    parts = _Parts(connection, trajectory_id)
    prompts = prompts_of(turn_rows) if tokens else {}
    fields = summary(row)
    fields["turns"] = [_turn(turn, parts, prompts.get(turn.id)) for turn in turn_rows]
    texts = toolset_texts(connection, turn_rows)
    fields["toolsets"] = {id_.hex(): _parsed(text) for id_, text in texts.items()}
    fields["feedback"] = _feedback(connection, trajectory_id)
    fields["rewards"] = _rewards(connection, trajectory_id)
    return fields


class _Parts:
    """What hangs on the turns of a trajectory, by turn id."""

    def __init__(self, connection: Connection, trajectory_id: str) -> None:
        def rows(table: Any, *order: Any) -> Iterable[Row[*tuple[Any, ...]]]:
            query = select(table).join(turns, table.c.turn_id == turns.c.id)
            return connection.execute(
                query.where(turns.c.trajectory_id == trajectory_id).order_by(*order)
            )

        self.calls: defaultdict[str, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for call in rows(calls, calls.c.position):
            self.calls[call.turn_id].append(call)
        self.results: defaultdict[str, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for result in rows(results, results.c.call_id):
            self.results[result.turn_id].append(result)
        self.changes = {change.turn_id: change for change in rows(changes)}
        self.dense = {reward.turn_id: reward.dense for reward in rows(call_rewards)}


def _turn(row: Row[*tuple[Any, ...]], parts: _Parts, prompt: IntArray | None) -> dict[str, Any]:
    change = parts.changes.get(row.id)
    fields: dict[str, Any] = {"id": row.id}
    fields |= {name: getattr(row, name) for name in _SCALARS}
    fields |= {
        "segment": _parsed(row.segment),
        "spans": [
            {"kind": SpanKind(span.kind).name.lower(), "start": span.start, "stop": span.stop}
            for span in load_spans(row.spans)
        ],
        "altered": _parsed(row.altered),
        "metadata": _parsed(row.metadata),
        "toolset_id": None if row.toolset_id is None else row.toolset_id.hex(),
        "params": _parsed(row.params),
        "messages": _parsed(row.new_messages),
        "response": _parsed(row.response),
        "calls": [_call(call) for call in parts.calls[row.id]],
        "results": [
            {"call_id": result.call_id, "content": result.content}
            for result in parts.results[row.id]
        ],
        "change": None if change is None else _change(change),
        "dense_reward": parts.dense.get(row.id),
    }
    if prompt is not None:
        fields["tokens"] = _tokens(row, prompt)
    return fields


def _call(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "position": row.position,
        "name": row.name,
        "arguments": row.arguments,
        "features": _parsed(row.features),
        "decision": {
            "action": row.action,
            "applied": row.applied,
            "reason": row.reason,
            "propensity": row.propensity,
            "mode": row.mode,
            "policy_name": row.policy_name,
            "policy_version": row.policy_version,
        },
    }


def _change(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in ("before", "after", "delta"):
        lower = getattr(row, f"{name}_lower")
        upper = getattr(row, f"{name}_upper")
        fields[name] = None if lower is None else {"lower": lower, "upper": upper}
    for name in ("delta_normalised", "reduced", "null_reason"):
        fields[name] = getattr(row, name)
    return fields


def _tokens(row: Row[*tuple[Any, ...]], prompt: IntArray) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "prompt_token_ids": prompt.tolist(),
        "token_ids": unpack_ints(row.token_ids).tolist(),
    }
    for name in ("logprobs", "entropy_lower", "entropy_upper", "margin", "tail_mass"):
        fields[name] = _floats(getattr(row, name))
    if fields["entropy_upper"] is None:
        fields["entropy_upper"] = fields["entropy_lower"]
    fields["p_tool_call"] = _floats(row.p_tool_call)
    return fields


def _floats(blob: bytes | None) -> list[float | None] | None:
    """JSON knows no nan: it becomes None."""
    if blob is None:
        return None
    return [None if np.isnan(value) else float(value) for value in unpack_floats(blob)]


def prompts_of(turn_rows: Iterable[Row[*tuple[Any, ...]]]) -> dict[str, IntArray]:
    """The whole prompt of each turn, parents before children: shared prefix plus what it added."""
    prompts: dict[str, IntArray] = {}
    sequences: dict[str, IntArray] = {}
    for row in turn_rows:
        added = unpack_ints(row.prompt_token_ids)
        if row.prompt_offset:
            added = np.concatenate([sequences[row.parent_id][: row.prompt_offset], added])
        prompts[row.id] = added
        sequences[row.id] = np.concatenate([added, unpack_ints(row.token_ids)])
    return prompts


def toolset_texts(
    connection: Connection, turn_rows: Iterable[Row[*tuple[Any, ...]]]
) -> dict[bytes, str]:
    """The lists of tools of these turns as clients sent them, by id."""
    ids = {row.toolset_id for row in turn_rows if row.toolset_id is not None}
    rows = connection.execute(select(toolsets).where(toolsets.c.id.in_(ids)))
    return {row.id: row.content for row in rows}


def _feedback(connection: Connection, trajectory_id: str) -> list[dict[str, Any]]:
    query = select(feedback).where(feedback.c.trajectory_id == trajectory_id)
    rows = connection.execute(query.order_by(feedback.c.id)).mappings()
    return [_plain(row) | {"gold": _parsed(row["gold"])} for row in rows]


def _rewards(connection: Connection, trajectory_id: str) -> dict[str, Any] | None:
    query = select(rewards).where(rewards.c.trajectory_id == trajectory_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else _plain(row)


def _plain(row: RowMapping) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _parsed(text: str | None) -> Any:
    return None if text is None else from_json(text)

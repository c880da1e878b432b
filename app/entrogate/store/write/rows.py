"""Turn records to the rows of the tables. Pure: nothing here touches a database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import orjson

from entrogate.access import tenant_of
from entrogate.gate.features import to_json
from entrogate.store.codec import dump_change, dump_segment, dump_spans, pack_floats, pack_ints
from entrogate.store.heads import has_calls
from entrogate.store.schema import SCHEMA_VERSION
from entrogate.store.write.placement import Place
from entrogate.types import Action, Capture, TurnRecord

Row = dict[str, Any]


def toolset_id(tools: bytes | None) -> bytes | None:
    """What a list of tools is stored under: most turns of a trajectory bring the same one."""
    return None if tools is None else hashlib.blake2b(tools, digest_size=16).digest()


def turn_row(record: TurnRecord, place: Place) -> Row:
    """One row of ``turns``."""
    return capture_columns(record.capture) | {
        "id": record.turn_id,
        "schema_version": SCHEMA_VERSION,
        "trajectory_id": record.trajectory_id,
        "turn_index": place.turn_index,
        "parent_id": place.parent_id,
        "branch_index": place.branch_index,
        "request_id": record.request_id,
        "response_id": record.response_id,
        "choice_index": record.choice_index,
        "created_at": record.created_at,
        "duration_seconds": record.duration_seconds,
        "model": record.model,
        "weight_version": record.weight_version,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "capture_gap": record.capture_gap,
        "replayed": record.replayed,
        "has_calls": has_calls(record),
        "n_messages": record.n_messages,
        "n_prompt_tokens": len(record.prompt_token_ids),
        "wasted_tokens": record.wasted_tokens,
        "fingerprint": record.fingerprint,
        "sequence_hash": record.sequence_hash,
        "segment": dump_segment(record.segment),
        "spans": dump_spans(record.spans),
        "altered": orjson.dumps(record.altered).decode(),
        "metadata": dump_metadata(record),
        "toolset_id": toolset_id(record.tools),
        "params": record.params.decode(),
        "new_messages": record.new_messages.decode(),
        "response": record.response.decode(),
        "prompt_offset": place.prompt_offset,
        "prompt_token_ids": pack_ints(record.prompt_token_ids[place.prompt_offset :]),
        "key_id": record.key_id,
    }


def capture_columns(capture: Capture) -> Row:
    """The columns that ``turns`` and ``shadows`` have of a capture."""
    lower, upper = pack_floats(capture.entropy_lower), pack_floats(capture.entropy_upper)
    return {
        "n_tokens": len(capture),
        "estimator": capture.estimator.value,
        "top_k": capture.top_k,
        "token_ids": pack_ints(capture.token_ids),
        "logprobs": pack_floats(capture.logprobs),
        "entropy_lower": lower,
        "entropy_upper": None if upper == lower else upper,
        "margin": pack_floats(capture.margin),
        "tail_mass": pack_floats(capture.tail_mass),
        "p_tool_call": pack_floats(capture.p_tool_call),
    }


def dump_metadata(record: TurnRecord) -> str | None:
    """The client's metadata as JSON; None where it sent none."""
    return None if record.metadata is None else orjson.dumps(record.metadata).decode()


def call_rows(record: TurnRecord) -> Iterable[Row]:
    """Rows of ``calls``: each decision with what it saw."""
    for call in record.calls:
        decision = call.decision
        yield {
            "id": call.call_id,
            "turn_id": record.turn_id,
            "position": call.index,
            "name": call.name,
            "arguments": call.arguments,
            "features": to_json(call.features),
            "action": decision.action.value,
            "applied": decision.applied.value,
            "reason": decision.reason,
            "propensity": decision.propensity,
            "mode": decision.mode.value,
            "policy_name": decision.policy_name,
            "policy_version": decision.policy_version,
        }


def result_rows(record: TurnRecord) -> Iterable[Row]:
    """Rows of ``results``, one a call id: a client that repeats a result is not at fault."""
    contents = {result.call_id: result.content for result in record.results}
    for call_id, content in contents.items():
        yield {"turn_id": record.turn_id, "call_id": call_id, "content": content}


def change_rows(record: TurnRecord) -> Iterable[Row]:
    """The row of `changes` for the turn's label; none where the turn has no label."""
    if record.change is not None:
        yield {"turn_id": record.turn_id} | dump_change(record.change)


def trajectory_row(record: TurnRecord, place: Place, sequence: int) -> Row:
    """What one turn adds to its trajectory: a row to insert or to add to the stored one."""
    applied = [call.decision.applied for call in record.calls if call.likely]
    return {
        "id": record.trajectory_id,
        "schema_version": SCHEMA_VERSION,
        "tenant": tenant_of(record.trajectory_id),
        "task_id": record.task_id,
        "model": record.model,
        "mode": record.calls[0].decision.mode.value if record.calls else None,
        "metadata": dump_metadata(record),
        "created_at": record.created_at,
        "updated_at": record.created_at + record.duration_seconds,
        "n_turns": 1,
        "n_branches": place.branch_index + 1,
        "n_calls": len(applied),
        "n_suppressed": applied.count(Action.SUPPRESS),
        "n_replayed": applied.count(Action.REPLAY),
        "completion_tokens": len(record.capture),
        "wasted_tokens": record.wasted_tokens,
        "incomplete_reason": _incomplete(record, place),
        "sequence": sequence,
        "policy_version": record.policy_version,
        "policy_changes": 0,
    }


def _incomplete(record: TurnRecord, place: Place) -> str | None:
    if record.error is not None:
        return f"error: {record.error}"
    if record.capture_gap is not None:
        return f"capture_gap: {record.capture_gap}"
    return "parent_missing" if place.orphaned else None


SUMS = ("n_turns", "n_calls", "n_suppressed", "n_replayed", "completion_tokens", "wasted_tokens")


def merge(first: Row, second: Row) -> Row:
    """Two additions to one trajectory as one."""
    merged = {name: first[name] + second[name] for name in SUMS}
    merged["n_branches"] = max(first["n_branches"], second["n_branches"])
    merged["updated_at"] = max(first["updated_at"], second["updated_at"])
    for name in ("incomplete_reason", "mode", "task_id", "metadata"):
        merged[name] = second[name] if first[name] is None else first[name]
    changed = first["policy_version"] != second["policy_version"]
    merged["policy_version"] = second["policy_version"]
    merged["policy_changes"] = first["policy_changes"] + second["policy_changes"] + changed
    return first | merged

"""What is stored of a turn, and what a debug answer says of it."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from entrogate.label.change import entropy_change
from entrogate.serve.linkage import mint, new_results
from entrogate.types import BASE_WEIGHTS, TurnRecord
from entrogate.wire.history import fingerprint

if TYPE_CHECKING:
    from entrogate.serve.choice import Choice
    from entrogate.serve.turn import Leg, Turn


def turn_record(turn: Turn, leg: Leg, choice: Choice, *, final: bool) -> TurnRecord:
    """What is stored of one choice of ``leg``; ``final``: the client gets it."""
    capture = choice.capture()
    spans = turn.judge.spans(choice)
    complete = choice.gap is None and leg.error is None
    calls = leg.decided.get(choice.index, ())
    segment = calls[0].features.segment if calls else turn.judge.segment(choice, spans)
    suppressed = choice.resumes_at is not None
    message = choice.message(calls=not suppressed)
    parent = leg.parent
    seen = turn.request.messages if final else leg.request.messages
    prompt = np.asarray(leg.prompt_token_ids, dtype=np.int32)
    digest = hashlib.blake2b(prompt.tobytes(), digest_size=16)
    digest.update(capture.token_ids.tobytes())
    return TurnRecord(
        turn_id=mint("turn"),
        trajectory_id=turn.link.trajectory_id,
        task_id=turn.link.task_id,
        parent=parent,
        request_id=turn.request_id,
        response_id=leg.response_id,
        choice_index=choice.index,
        created_at=leg.started_at,
        duration_seconds=time.monotonic() - leg.began,
        model=leg.model or leg.request.model,
        new_messages=orjson.dumps(_new_messages(leg)),
        n_messages=len(seen) + 1,
        tools=leg.request.tools(),
        params=leg.request.params(),
        response=orjson.dumps(message),
        finish_reason=choice.finish_reason,
        prompt_token_ids=prompt,
        capture=capture,
        spans=spans,
        segment=segment,
        altered=tuple(choice.altered),
        capture_gap=choice.gap or ("broken_off" if leg.error else None),
        wasted_tokens=choice.wasted_tokens,
        calls=calls,
        results=new_results(turn.link.parent, turn.judge.earlier) if turn.legs_done == 0 else (),
        change=None
        if parent is None or not parent.has_calls
        else entropy_change(
            parent.segment if parent.capture_complete else None,
            segment if complete else None,
            before_complete=parent.capture_complete,
            after_complete=complete,
        ),
        fingerprint=fingerprint([*seen, message]),
        sequence_hash=digest.digest(),
        replayed=not final,
        weight_version=_weight_version(turn, leg),
        metadata=turn.request.metadata,
        error=leg.error,
    )


def _weight_version(turn: Turn, leg: Leg) -> str:
    """Of the weights that answered; an adapter that is not published here goes by its name."""
    if turn.lease.version is not None:
        return turn.lease.version
    name = leg.model or leg.request.model
    return BASE_WEIGHTS if name in turn.capabilities.base_models else name


def _new_messages(leg: Leg) -> list[dict[str, Any]]:
    """The messages since the parent; all of them when the history was rewritten."""
    messages = leg.request.messages
    start = leg.parent.n_messages if leg.parent is not None else 0
    if start > len(messages) or (start and messages[start - 1].get("role") != "assistant"):
        return messages
    return messages[start:]


def debug_object(turn: Turn) -> dict[str, Any]:
    """The ``entrogate`` object of a debug answer."""
    return {
        "trajectory_id": turn.link.trajectory_id,
        "mode": turn.judge.mode,
        "policy": {
            "name": turn.gateway.policy.name,
            "version": turn.gateway.policy.version,
        },
        "wasted_tokens": sum(record.wasted_tokens for record in turn.records),
        "turns": [_debug_turn(record) for record in turn.records],
    }


def _debug_turn(record: TurnRecord) -> dict[str, Any]:
    return {
        "turn_id": record.turn_id,
        "choice": record.choice_index,
        "replayed": record.replayed,
        "weight_version": record.weight_version,
        "estimator": record.capture.estimator,
        "top_k": record.capture.top_k,
        "segment": record.segment,
        "capture_gap": record.capture_gap,
        "wasted_tokens": record.wasted_tokens,
        "decisions": [
            {
                "call_id": call.call_id,
                "tool": call.name,
                "action": call.decision.action,
                "applied": call.decision.applied,
                "reason": call.decision.reason,
                "propensity": call.decision.propensity,
            }
            for call in record.calls
        ],
    }

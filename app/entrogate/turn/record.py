"""What is stored of a turn, and what a debug answer says of it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrogate.access import tenant_of
from entrogate.label.change import entropy_change
from entrogate.turn.choice import Choice
from entrogate.turn.ids import ANSWER_PREFIX, mint, mint_answer
from entrogate.turn.link import new_results
from entrogate.turn.state import Leg, Turn
from entrogate.types import (
    BASE_WEIGHTS,
    Capture,
    EntropyChange,
    SegmentStats,
    Span,
    TurnHead,
    TurnRecord,
)
from entrogate.wire.body import to_json
from entrogate.wire.history import Fingerprint


def leg_records(turn: Turn, *, final: bool) -> list[TurnRecord]:
    """What is stored of the current leg, a record for each choice; ``final``: the client gets it.

    A choice whose statistics fail is recorded without them, its capture marked.
    """
    records: list[TurnRecord] = []
    with turn.guard.around("record"):
        shared = _shared(turn, final=final)
        for _, choice in sorted(turn.leg.choices.items()):
            with turn.guard.around("gate"):
                _decide_unsampled(turn, choice)
            with turn.guard.around("record"):
                measured = _measured(turn, choice)
                records.append(_record(turn, choice, measured, shared, final=final))
    return records


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all choices of a leg were asked: made once, however many and however long."""

    new_messages: bytes
    n_messages: int
    tools: bytes | None
    params: bytes
    prompt_token_ids: NDArray[np.int32]
    fingerprint: Fingerprint


def _shared(turn: Turn, *, final: bool) -> _Shared:
    leg = turn.leg
    seen = turn.request.messages if final else leg.request.messages
    said = Fingerprint(tenant_of(turn.link.trajectory_id))
    for message in seen:
        said.add(message)
    return _Shared(
        new_messages=to_json(_new_messages(leg)),
        n_messages=len(seen),
        tools=leg.request.tools(),
        params=leg.request.params(),
        prompt_token_ids=np.asarray(leg.prompt_token_ids, dtype=np.int32),
        fingerprint=said,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the statistics say of one choice."""

    capture: Capture
    spans: tuple[Span, ...] = ()
    segment: SegmentStats | None = None


def _decide_unsampled(turn: Turn, choice: Choice) -> None:
    """Keep the decision that the engine took before a call was sampled."""
    leg = turn.leg
    if choice.tokens.gated is not None and choice.index not in leg.decided:
        leg.decided[choice.index] = turn.judge.decide_unsampled(choice, turn.request.tool_names)


def _measured(turn: Turn, choice: Choice) -> _Measured:
    capture = turn.capture_of(choice)
    with turn.guard.around("statistics"):
        if choice.tokens.gap == "capture_fault":
            return _Measured(capture=capture)
        spans = turn.judge.spans(choice)
        calls = turn.leg.decided.get(choice.index, ())
        called = calls and calls[0].likely
        segment = calls[0].features.segment if called else turn.judge.segment(choice, spans)
        return _Measured(capture=capture, spans=spans, segment=segment)
    choice.tokens.mark("statistics_fault")
    return _Measured(capture=capture)


def _record(
    turn: Turn, choice: Choice, measured: _Measured, shared: _Shared, *, final: bool
) -> TurnRecord:
    leg, tokens, capture = turn.leg, choice.tokens, measured.capture
    message = choice.message(calls=tokens.resumes_at is None)
    said = shared.fingerprint.copy()
    said.add(message)
    digest = hashlib.blake2b(shared.prompt_token_ids.tobytes(), digest_size=16)
    digest.update(capture.token_ids.tobytes())
    return TurnRecord(
        turn_id=mint("turn"),
        trajectory_id=turn.link.trajectory_id,
        task_id=turn.link.task_id,
        parent=leg.parent,
        request_id=turn.request_id,
        response_id=turn.response_id if final else ANSWER_PREFIX + mint_answer(),
        choice_index=choice.index,
        created_at=leg.started_at,
        duration_seconds=time.monotonic() - leg.began,
        model=leg.model or leg.request.model,
        new_messages=shared.new_messages,
        n_messages=shared.n_messages + 1,
        tools=shared.tools,
        params=shared.params,
        response=to_json(message),
        finish_reason=choice.finish_reason,
        prompt_token_ids=shared.prompt_token_ids,
        capture=capture,
        spans=measured.spans,
        segment=measured.segment,
        altered=tuple(tokens.altered),
        capture_gap=tokens.gap or ("broken_off" if leg.error else None),
        wasted_tokens=tokens.wasted + tokens.drafted,
        calls=leg.decided.get(choice.index, ()),
        results=new_results(turn.link.parent, turn.judge.earlier) if turn.first_leg else (),
        change=_change(leg, choice, measured.segment),
        fingerprint=said.digest(),
        sequence_hash=digest.digest(),
        replayed=not final,
        weight_version=_weight_version(turn, leg),
        policy_version=turn.judge.policy.version,
        metadata=turn.request.metadata,
        error=leg.error,
        key_id=turn.key_id,
    )


def _change(leg: Leg, choice: Choice, segment: SegmentStats | None) -> EntropyChange | None:
    """What the calls of the parent turn changed, if it had any."""
    parent: TurnHead | None = leg.parent
    if parent is None or not parent.has_calls:
        return None
    complete = choice.tokens.gap is None and leg.error is None
    return entropy_change(
        parent.segment if parent.capture_complete else None,
        segment if complete else None,
        before_complete=parent.capture_complete,
        after_complete=complete,
    )


def _weight_version(turn: Turn, leg: Leg) -> str:
    """Of the weights that answered; an adapter that is not published here goes by its name."""
    if turn.weight_version is not None:
        return turn.weight_version
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
        "trajectory_id": turn.link.trajectory_id if turn.recorded else None,
        "mode": turn.judge.mode,
        "policy": {"name": turn.judge.policy.name, "version": turn.judge.policy.version},
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

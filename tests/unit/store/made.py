"""Turn records for the store's tests: real values, as `serve` would make them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from entrogate.gate.decide import decide_turn
from entrogate.gate.policy import parse_policy
from entrogate.gate.schema import Policy
from entrogate.store.codec import pack_ints, sequence_hash
from entrogate.types import (
    Action,
    CallRecord,
    Capture,
    EntropyChange,
    Estimator,
    Features,
    IntArray,
    Interval,
    Mode,
    SegmentStats,
    ShadowPurpose,
    ShadowRecord,
    Span,
    SpanKind,
    ToolResult,
    TurnHead,
    TurnRecord,
)

POLICY_TEXT = """
schema_version: 1
name: test
mode: enforce
signal: {statistic: entropy_mean, bound: upper, min_tokens: 2}
tools:
  lookup: {threshold: 0.5}
"""

_ids = itertools.count()


def policy() -> Policy:
    return parse_policy(POLICY_TEXT, "test.yaml")


def capture(length: int, seed: int = 0, *, exact: bool = False) -> Capture:
    """Random arrays, with a nan where a value may be missing."""
    rng = np.random.default_rng(seed)
    lower = rng.exponential(1.0, length).astype(np.float32)
    p_tool_call = rng.random(length).astype(np.float32)
    p_tool_call[::3] = np.nan
    return Capture(
        token_ids=rng.integers(0, 2**31 - 1, length, dtype=np.int32),
        logprobs=-rng.exponential(1.0, length).astype(np.float32),
        entropy_lower=lower,
        entropy_upper=lower.copy() if exact else lower * np.float32(1.5),
        margin=rng.exponential(2.0, length).astype(np.float32),
        tail_mass=rng.random(length).astype(np.float32),
        p_tool_call=p_tool_call,
        estimator=Estimator.EXACT if exact else Estimator.TOPK,
        top_k=None if exact else 20,
    )


def segment(mean: float = 1.0, n_tokens: int = 8) -> SegmentStats:
    around = Interval(lower=mean - 0.1, upper=mean + 0.1)
    return SegmentStats(
        start=0,
        stop=n_tokens,
        n_tokens=n_tokens,
        estimator=Estimator.TOPK,
        mean=around,
        max=Interval(lower=mean + 1, upper=mean + 1.5),
        tail_mean=around,
        last_window=around,
        margin_mean=2.0,
        margin_min=0.125,
        p_tool_call=None,
    )


def features(tool: str = "lookup", stats: SegmentStats | None = None, **changed: Any) -> Features:
    values: dict[str, Any] = {
        "tool": tool,
        "segment": stats,
        "capture_complete": True,
        "tool_choice": "auto",
        "repeats": 0,
        "replayable": False,
        "calls_before": 0,
        "tool_calls_before": 0,
        "parallel_calls": 1,
        "replays_in_turn": 0,
        "draw": 0.25,
    }
    return Features(**(values | changed))


def calls_of(*seen: Features, mode: Mode = Mode.ENFORCE, by: Policy | None = None) -> Any:
    """Call records with the decisions that the policy takes on these features."""
    decisions = decide_turn(by or policy(), mode, seen)
    return tuple(
        CallRecord(
            call_id=f"call-{next(_ids)}",
            index=index,
            name=each.tool,
            arguments='{"name":"Ada"}',
            features=each,
            decision=decision,
        )
        for index, (each, decision) in enumerate(zip(seen, decisions, strict=True))
    )


def allowed_call() -> tuple[CallRecord, ...]:
    """One call of a tool that the policy does not name."""
    made = calls_of(features("free", segment()))
    assert made[0].decision.applied is Action.ALLOW
    return made


def change(reduced: bool | None, null_reason: str | None = None) -> EntropyChange:
    if reduced is None:
        return EntropyChange(
            before=None,
            after=None,
            delta=None,
            delta_normalised=None,
            reduced=None,
            null_reason=null_reason or "short_segment",
        )
    step = -0.5 if reduced else 0.5
    return EntropyChange(
        before=Interval(lower=1.0, upper=1.25),
        after=Interval(lower=1.0 + step, upper=1.25 + step),
        delta=Interval(lower=step - 0.25, upper=step + 0.25),
        delta_normalised=step,
        reduced=reduced,
        null_reason=None,
    )


def turn(
    trajectory_id: str,
    *,
    parent: TurnRecord | None = None,
    head: TurnHead | None = None,
    prompt: IntArray | None = None,
    length: int = 6,
    calls: Sequence[CallRecord] = (),
    results: Sequence[ToolResult] = (),
    **changed: Any,
) -> TurnRecord:
    """A turn; with ``parent`` (and its ``head``) the prompt continues the parent's sequence."""
    number = next(_ids)
    sampled = capture(length, seed=number)
    if prompt is None:
        added = np.arange(number, number + 5, dtype=np.int32)
        prompt = added if parent is None else np.concatenate([sequence(parent), added])
    record = TurnRecord(
        turn_id=f"turn-{number}",
        trajectory_id=trajectory_id,
        task_id=None,
        parent=head,
        request_id=f"request-{number}",
        response_id=f"response-{number}",
        choice_index=0,
        created_at=1_700_000_000.0 + number,
        duration_seconds=0.5,
        model="almanac",
        new_messages=orjson.dumps([{"role": "user", "content": f"Frage {number} — ü"}]),
        n_messages=2,
        tools=b'[{"type":"function","function":{"name":"lookup"}}]',
        params=b'{"temperature":0}',
        response=b'{"role":"assistant","content":"so"}',
        finish_reason="stop",
        prompt_token_ids=prompt,
        capture=sampled,
        spans=(
            Span(kind=SpanKind.REASONING, start=0, stop=length - 1),
            Span(kind=SpanKind.CONTROL, start=length - 1, stop=length),
        ),
        segment=segment(),
        altered=((1, 2),),
        capture_gap=None,
        wasted_tokens=0,
        calls=tuple(calls),
        results=tuple(results),
        change=None,
        fingerprint=pack_ints(np.array([number], dtype=np.int32)),
        sequence_hash=b"",
    )
    record = replace(record, **changed)
    return replace(record, sequence_hash=sequence_hash(sequence(record)))


def shadow(of: TurnRecord, **changed: Any) -> ShadowRecord:
    """What the model would have said in place of the calls of a turn."""
    record = ShadowRecord(
        turn_id=of.turn_id,
        trajectory_id=of.trajectory_id,
        purpose=ShadowPurpose.SAMPLE,
        way="mask",
        created_at=1_700_000_000.0,
        duration_seconds=0.25,
        model="almanac",
        weight_version="base",
        finish_reason="stop",
        called=False,
        content="Es ist Köln.",
        capture=capture(7, seed=5),
        capture_gap=None,
        n_kept=3,
    )
    return replace(record, **changed)


def sequence(record: TurnRecord) -> IntArray:
    """Prompt and sample."""
    return np.concatenate([record.prompt_token_ids, record.capture.token_ids])

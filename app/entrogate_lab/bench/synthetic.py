"""Trajectories with random numbers and true structure, as fast as a store takes them.

Each has two turns that call and one that answers, 199 tokens in all. What is random: token ids,
entropies, log-probs and scores. Spans, statistics, labels, decisions and rewards are made by the
functions that the gateway uses.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson

from entrogate.entropy.statistics import segment_stats
from entrogate.gate.decide import decide_turn
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Policy
from entrogate.label.change import entropy_change
from entrogate.segments.spans import reasoning_ranges
from entrogate.store import Store
from entrogate.store.codec import sequence_hash
from entrogate.store.heads import head_of_record
from entrogate.types import (
    CallRecord,
    Capture,
    Estimator,
    Features,
    IntArray,
    Mode,
    SegmentStats,
    Span,
    SpanKind,
    ToolResult,
    TurnRecord,
)

GROUP = 8  # trajectories of one task
_UNJUDGED = 3  # for each judged one; an outcome takes longer to store than three turns
_AT_ONCE = 100  # trajectories that are handed to the store together
_VOCABULARY = 150_000
_PROMPT, _RESULT = 60, 20
_CALLING = (
    (SpanKind.CONTROL, 1),
    (SpanKind.REASONING, 20),
    (SpanKind.CONTROL, 1),
    (SpanKind.CALL, 12),
    (SpanKind.CONTROL, 1),
)
_ANSWERING = (
    (SpanKind.CONTROL, 1),
    (SpanKind.REASONING, 20),
    (SpanKind.CONTROL, 1),
    (SpanKind.ANSWER, 6),
    (SpanKind.CONTROL, 1),
)
_TOOLS = orjson.dumps([{"type": "function", "function": {"name": "search"}}])
_PARAMS = orjson.dumps({"temperature": 1.0})


async def fill(store: Store, count: int, *, seed: int = 0) -> None:
    """Store ``count`` trajectories, every fourth of them with an outcome."""
    maker = _Maker(rng=np.random.default_rng(seed), policy=load_policy("observe", can_force=False))
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, count))
        made = [list(maker.trajectory(number)) for number in numbers]
        await store.commit_turns([turn for turns in made for turn in turns])
        judged = made[:: _UNJUDGED + 1]
        scores = maker.rng.random(len(judged)).round(2)
        await asyncio.gather(
            *(
                store.add_feedback(trajectory_id=turns[0].trajectory_id, score=float(score))
                for turns, score in zip(judged, scores, strict=True)
            )
        )


async def add_long(store: Store, *, turns: int, tokens: int, seed: int = 1) -> str:
    """Store one trajectory of so many turns, and tokens in all; its id."""
    maker = _Maker(rng=np.random.default_rng(seed), policy=load_policy("observe", can_force=False))
    shape = (
        (SpanKind.CONTROL, 1),
        (SpanKind.REASONING, tokens // turns - 2),
        (SpanKind.CONTROL, 1),
    )
    number, parent = 10**9, None
    sequence = np.empty(0, dtype=np.int32)
    for index in range(turns):
        prompt = np.concatenate([sequence, maker.rng.integers(0, _VOCABULARY, _RESULT, np.int32)])
        parent = maker.turn(number, index, shape, prompt, parent)
        sequence = np.concatenate([prompt, parent.capture.token_ids])
        await store.commit_turns([parent])
    assert parent is not None
    return parent.trajectory_id


@dataclass(slots=True)
class _Maker:
    rng: np.random.Generator
    policy: Policy

    def trajectory(self, number: int) -> Iterator[TurnRecord]:
        parent: TurnRecord | None = None
        sequence = np.empty(0, dtype=np.int32)
        for index, shape in enumerate((_CALLING, _CALLING, _ANSWERING)):
            given = self._tokens(_RESULT if index else _PROMPT)
            prompt = np.concatenate([sequence, given])
            record = self.turn(number, index, shape, prompt, parent)
            sequence = np.concatenate([prompt, record.capture.token_ids])
            parent = record
            yield record

    def turn(
        self,
        number: int,
        index: int,
        shape: tuple[tuple[SpanKind, int], ...],
        prompt: IntArray,
        parent: TurnRecord | None,
    ) -> TurnRecord:
        capture, spans = self._capture(sum(length for _, length in shape)), _spans(shape)
        segment = segment_stats(capture, reasoning_ranges(spans))
        calls = self._calls(number, index, segment) if shape is _CALLING else ()
        change = None if parent is None else entropy_change(parent.segment, segment)
        answered = () if parent is None else parent.calls
        said = {"role": "user", "content": f"Which is it, number {number}?"}
        turn_id = f"turn-{number}-{index}"
        return TurnRecord(
            turn_id=turn_id,
            trajectory_id=f"trajectory-{number}",
            task_id=f"task-{number // GROUP}",
            parent=None if parent is None else head_of_record(parent, index - 1, 0),
            request_id=f"request-{number}-{index}",
            response_id=f"response-{number}-{index}",
            choice_index=0,
            created_at=time.time(),
            duration_seconds=0.1,
            model="synthetic",
            new_messages=orjson.dumps([said if not index else said | {"role": "tool"}]),
            n_messages=2 * index + 2,
            tools=_TOOLS,
            params=_PARAMS,
            response=orjson.dumps({"role": "assistant", "content": "It is this one."}),
            finish_reason="tool_calls" if calls else "stop",
            prompt_token_ids=prompt,
            capture=capture,
            spans=spans,
            segment=segment,
            altered=(),
            capture_gap=None,
            wasted_tokens=0,
            calls=calls,
            results=tuple(ToolResult(call_id=c.call_id, content="found") for c in answered),
            change=change,
            fingerprint=turn_id.encode(),
            sequence_hash=sequence_hash(np.concatenate([prompt, capture.token_ids])),
        )

    def _capture(self, length: int) -> Capture:
        entropy = self.rng.exponential(1.0, length).astype(np.float32)
        return Capture(
            token_ids=self._tokens(length),
            logprobs=-self.rng.exponential(1.0, length).astype(np.float32),
            entropy_lower=entropy,
            entropy_upper=entropy,
            margin=self.rng.exponential(2.0, length).astype(np.float32),
            tail_mass=np.zeros(length, dtype=np.float32),
            p_tool_call=self.rng.random(length).astype(np.float32),
            estimator=Estimator.EXACT,
            top_k=None,
        )

    def _calls(
        self, number: int, index: int, segment: SegmentStats | None
    ) -> tuple[CallRecord, ...]:
        features = Features(
            tool="search",
            segment=segment,
            capture_complete=True,
            tool_choice="auto",
            repeats=0,
            replayable=False,
            calls_before=index,
            tool_calls_before=index,
            parallel_calls=1,
            replays_in_turn=0,
            draw=float(self.rng.random()),
        )
        (decision,) = decide_turn(self.policy, Mode.OBSERVE, [features])
        return (
            CallRecord(
                call_id=f"call-{number}-{index}",
                index=0,
                name="search",
                arguments='{"query":"this one"}',
                features=features,
                decision=decision,
            ),
        )

    def _tokens(self, length: int) -> IntArray:
        return self.rng.integers(0, _VOCABULARY, length, dtype=np.int32)


def _spans(shape: tuple[tuple[SpanKind, int], ...]) -> tuple[Span, ...]:
    ends = list(itertools.accumulate(length for _, length in shape))
    starts = [0, *ends]
    return tuple(
        Span(kind=kind, start=start, stop=stop)
        for (kind, _), start, stop in zip(shape, starts, ends, strict=False)
    )

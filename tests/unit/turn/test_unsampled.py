"""Which of the calls that the engine masked are kept, and with what."""

from __future__ import annotations

import numpy as np
import pytest

from entrogate.engine.frames import TOKEN, Gated
from entrogate.gate import parse_policy
from entrogate.gate.decide import sub_draw
from entrogate.segments.spans import Markers
from entrogate.turn.choice import Choice
from entrogate.turn.judge import UNSAMPLED, Judge
from entrogate.types import Action, CallRecord, Mode
from entrogate.upstream.captures import ChoiceCapture
from entrogate.wire.history import CallHistory
from tests.unit.turn.capabilities import CAPABILITIES

MARKERS = Markers(think_open=1, think_close=2, call_open=3, call_close=4)
POLICY = """
schema_version: 1
name: test
tools: {lookup: {threshold: 1.5}}
explore: {epsilon: 0.25}
"""
FLIPS = next(n / 1000 for n in range(1000) if sub_draw(n / 1000, "explore") < 0.25)


def kept(mode: Mode, p: float, *, rest: str = "", entropy: float = 2.0) -> tuple[CallRecord, ...]:
    """What is kept of a call that was masked after six tokens of reasoning, p to be sampled."""
    policy = parse_policy(POLICY + rest, "test.yaml")
    judge = Judge(
        policy=policy,
        mode=mode,
        markers=MARKERS,
        tool_choice="auto",
        earlier=CallHistory(),
    )
    choice = Choice(0, CAPABILITIES, "<tool_call>")
    judge.draw_for(choice, FLIPS)
    tokens = np.zeros(10, TOKEN)
    tokens["token_id"] = [1, 11, 12, 13, 14, 15, 2, 20, 21, 22]
    tokens["entropy"], tokens["p_tool_call"] = entropy, p
    gated = Gated(0, 7, "suppress", entropy, 5, p, p)
    choice.tokens.take_captured(
        ChoiceCapture(parts=[tokens.tobytes()], n_tokens=10, n_ended=10, gated=[gated]), None
    )
    return judge.decide_unsampled(choice, ["lookup"])


@pytest.mark.parametrize("p", [0.002, 0.3, 0.9])
def test_exploring_keeps_every_masked_call_with_its_probability(p: float) -> None:
    (record,) = kept(Mode.EXPLORE, p)
    assert record.name == UNSAMPLED
    assert record.features.p_sampled == pytest.approx(p)
    assert record.features.segment is not None
    assert record.features.segment.n_tokens == 5
    assert (record.decision.action, record.decision.applied) == (Action.ALLOW, Action.SUPPRESS)
    assert record.decision.propensity == pytest.approx(0.25)
    assert record.likely is (p >= 0.5)


@pytest.mark.parametrize(("p", "n"), [(0.002, 0), (0.3, 0), (0.9, 1)])
def test_where_nothing_is_left_to_chance_only_likely_calls_are_kept(p: float, n: int) -> None:
    assert len(kept(Mode.ENFORCE, p, entropy=1.0)) == n


def test_an_audit_leaves_something_to_chance() -> None:
    (record,) = kept(Mode.ENFORCE, 0.3, rest="audit: {share: 0.1}\n", entropy=1.0)
    assert record.features.p_sampled == pytest.approx(0.3)
    assert record.decision.propensity == pytest.approx(0.9)


def test_what_could_never_have_been_sampled_was_no_decision() -> None:
    assert kept(Mode.EXPLORE, 0.0) == ()

"""The audit: which turns may go through at random, how often, and what is stored of it."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from entrogate.errors import ConfigError
from entrogate.gate import Reason, decide_turn, parse_policy
from entrogate.gate.compile import compile_gate
from entrogate.gate.decide import sub_draw
from entrogate.gate.features import from_json, to_json
from entrogate.segments.spans import Markers
from entrogate.types import Action, Mode
from tests.unit.gate.factory import features, policy, segment

ALLOW, SUPPRESS = Action.ALLOW, Action.SUPPRESS
SHARE = 0.2
AUDIT = "{share: 0.2, max_loss: 0.05, delta: 0.1}"
TOOLS = "{lookup: {max_calls: 3}, search: , send: {side_effects: true}}"
GRID = [i / 4001 for i in range(4001)]  # draws; hashed, so as good as random ones
CERTAIN: dict[str, Any] = {"segment": segment(entropy=0.5)}
UNCERTAIN = {"segment": segment(entropy=3.0)}


def audited(threshold="2.0", **sections):
    return policy(threshold, tools=TOOLS, audit=AUDIT, **{"on_repeat": "replay", **sections})


def frequencies(rules, mode, turn):
    """How often each (action, applied, reasons) comes over many draws, and the propensities."""
    found, logged = Counter(), {}
    for draw in GRID:
        decisions = decide_turn(rules, mode, [features(draw=draw, **changes) for changes in turn])
        (applied,) = {d.applied for d in decisions}
        found[decisions[0].action, applied] += 1
        logged.setdefault((decisions[0].action, applied), set()).update(
            d.propensity for d in decisions
        )
    return {each: n / len(GRID) for each, n in found.items()}, logged


@pytest.mark.parametrize(
    "turn", [[CERTAIN], [CERTAIN, {**CERTAIN, "tool": "search"}]], ids=["one call", "two calls"]
)
def test_a_share_of_what_the_signal_suppresses_goes_through(turn):
    found, logged = frequencies(audited(), Mode.ENFORCE, turn)
    assert found == pytest.approx(
        {(SUPPRESS, SUPPRESS): 1 - SHARE, (SUPPRESS, ALLOW): SHARE}, abs=0.02
    )
    assert logged == {(SUPPRESS, SUPPRESS): {1 - SHARE}, (SUPPRESS, ALLOW): {SHARE}}


def test_the_reason_of_an_audited_call_is_that_of_its_suppression():
    reasons = {
        decision.reason
        for draw in GRID
        for decision in decide_turn(audited(), Mode.ENFORCE, [features(draw=draw, **CERTAIN)])
        if decision.applied is ALLOW
    }
    assert reasons == {Reason.CERTAIN}


@pytest.mark.parametrize(
    ("mode", "changes", "expected"),
    [
        (Mode.OBSERVE, CERTAIN, {(SUPPRESS, ALLOW): 1.0}),
        (Mode.EXPLORE, CERTAIN, {(SUPPRESS, SUPPRESS): 0.7, (SUPPRESS, ALLOW): 0.3}),
        (Mode.ENFORCE, UNCERTAIN, {(ALLOW, ALLOW): 1.0}),
        (Mode.ENFORCE, {**CERTAIN, "tool": "send"}, {(ALLOW, ALLOW): 1.0}),
        # orders, not guesses: there is nothing to audit
        (Mode.ENFORCE, {**CERTAIN, "tool_calls_before": 3}, {(SUPPRESS, SUPPRESS): 1.0}),
        (
            Mode.ENFORCE,
            {**UNCERTAIN, "repeats": 3, "replayable": True, "replays_in_turn": 2},
            {(SUPPRESS, SUPPRESS): 1.0},
        ),
        (
            Mode.ENFORCE,
            {**UNCERTAIN, "repeats": 1, "replayable": True},
            {(Action.REPLAY, Action.REPLAY): 1.0},
        ),
    ],
)
def test_nothing_else_is_audited(mode, changes, expected):
    found, logged = frequencies(audited(explore="{epsilon: 0.3}"), mode, [changes])
    assert found == pytest.approx(expected, abs=0.02)
    assert {key: p.copy().pop() for key, p in logged.items()} == pytest.approx(
        {key: 1.0 if mode is Mode.OBSERVE else value for key, value in expected.items()}
    )


def test_one_call_that_is_ordered_away_keeps_the_turn_from_being_audited():
    turn = [CERTAIN, {**CERTAIN, "tool_calls_before": 3}]
    found, _ = frequencies(audited(), Mode.ENFORCE, turn)
    assert found == {(SUPPRESS, SUPPRESS): 1.0}


def test_with_random_suppression_the_propensity_is_still_that_of_what_was_done():
    rules = audited("0.6", signal="{statistic: uniform}")
    found, logged = frequencies(rules, Mode.ENFORCE, [{}])
    assert found == pytest.approx(
        {(SUPPRESS, SUPPRESS): 0.48, (SUPPRESS, ALLOW): 0.12, (ALLOW, ALLOW): 0.4}, abs=0.03
    )
    assert sorted(logged[SUPPRESS, SUPPRESS]) == pytest.approx([0.48])
    assert sorted(logged[SUPPRESS, ALLOW] | logged[ALLOW, ALLOW]) == pytest.approx([0.52])


def test_without_an_audit_nothing_is_let_through():
    found, _ = frequencies(policy(tools=TOOLS), Mode.ENFORCE, [CERTAIN])
    assert found == {(SUPPRESS, SUPPRESS): 1.0}


def test_the_audit_is_independent_of_the_other_numbers_of_a_draw():
    for other in ("uniform", "explore"):
        quarters = Counter((sub_draw(d, "audit") < 0.5, sub_draw(d, other) < 0.5) for d in GRID)
        assert all(abs(n / len(GRID) - 0.25) < 0.03 for n in quarters.values())


def test_a_stored_audit_replays():
    rules = audited()
    for draw in GRID[:500]:
        seen = features(draw=draw, **CERTAIN)
        again = from_json(to_json(seen))
        assert decide_turn(rules, Mode.ENFORCE, [again]) == decide_turn(rules, Mode.ENFORCE, [seen])


def test_the_engine_lets_the_same_turns_through():
    """What is audited must be sampled, so the gate in the engine has nothing to do then."""
    rules = policy(audit=AUDIT)
    markers = Markers(think_open=1, think_close=2, call_open=3, call_close=4)
    for draw in GRID[:500]:
        seen = features(draw=draw, **CERTAIN)
        (decision,) = decide_turn(rules, Mode.ENFORCE, [seen])
        numbers = compile_gate(
            rules,
            Mode.ENFORCE,
            [replace(seen, segment=None)],
            markers,
            blank_ids=frozenset(),
        )
        masks = numbers is not None and numbers.suppress_certain
        assert masks is (decision.applied is SUPPRESS)


def test_a_policy_without_an_audit_keeps_its_version():
    text = "schema_version: 1\nname: test\ntools: {lookup: }\n"
    plain, with_audit = parse_policy(text, "a"), parse_policy(text + f"audit: {AUDIT}\n", "a")
    assert "audit" not in plain.model_dump()
    assert plain.version != with_audit.version


@pytest.mark.parametrize("key", ["share", "max_loss", "delta"])
@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", ".nan", "half", "null", "true"])
def test_shares_and_levels_are_inside_the_unit_interval(key, value):
    text = f"schema_version: 1\nname: test\ntools: {{lookup: }}\naudit:\n  {key}: {value}\n"
    with pytest.raises(ConfigError, match=rf"^a:5:\d+: .*audit\.{key}"):
        parse_policy(text, "a")


def test_a_misspelt_key_is_told():
    text = "schema_version: 1\nname: test\naudit: {shares: 0.1}\n"
    with pytest.raises(ConfigError, match="unknown key 'shares'; did you mean 'share'"):
        parse_policy(text, "a")

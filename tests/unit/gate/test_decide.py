"""Rules in their order, modes, propensities, and replay from stored features."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrogate.gate import Reason, bundled_policies, decide_turn, load_policy
from entrogate.gate.decide import sub_draw
from entrogate.gate.features import from_json, to_json
from entrogate.types import Action, Estimator, Features, Interval, Mode, SegmentStats
from tests.unit.gate.factory import NAN, features, policy, segment

ALLOW, SUPPRESS, REPLAY = Action.ALLOW, Action.SUPPRESS, Action.REPLAY


def one(rules, proposed, mode=Mode.ENFORCE):
    (decision,) = decide_turn(rules, mode, [proposed])
    return decision


CERTAIN = segment(entropy=0.5)
UNCERTAIN = segment(entropy=3.0)
REPEAT = {"repeats": 1, "replayable": True}


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"segment": CERTAIN}, SUPPRESS, Reason.CERTAIN),
        ({"segment": UNCERTAIN}, ALLOW, Reason.UNCERTAIN),
        ({"segment": CERTAIN, "tool": "unnamed"}, ALLOW, Reason.NOT_NAMED),
        ({"segment": CERTAIN, "tool": "send"}, ALLOW, Reason.SIDE_EFFECTS),
        ({"segment": CERTAIN, "tool": "send", "calls_before": 99}, ALLOW, Reason.SIDE_EFFECTS),
        ({"segment": CERTAIN, "tool_choice": "required"}, ALLOW, Reason.TOOL_CHOICE),
        ({"segment": CERTAIN, "tool_choice": "named", **REPEAT}, ALLOW, Reason.TOOL_CHOICE),
        ({"segment": CERTAIN, "tool_choice": "constrained"}, ALLOW, Reason.TOOL_CHOICE),
        ({"segment": CERTAIN, "capture_complete": False}, ALLOW, Reason.CAPTURE_GAP),
        ({"segment": None}, ALLOW, Reason.NO_SEGMENT),
        ({"segment": segment(entropy=0.5, n_tokens=3)}, ALLOW, Reason.SHORT_SEGMENT),
        ({"segment": segment(entropy=0.5, n_tokens=4)}, SUPPRESS, Reason.CERTAIN),
        ({"segment": UNCERTAIN, **REPEAT}, REPLAY, Reason.REPEAT),
        ({"segment": CERTAIN, **REPEAT}, SUPPRESS, Reason.CERTAIN),
        ({"segment": None, **REPEAT}, REPLAY, Reason.REPEAT),
        ({"capture_complete": False, **REPEAT}, REPLAY, Reason.REPEAT),
        ({"segment": UNCERTAIN, "repeats": 1}, ALLOW, Reason.RESULT_MISSING),
        ({"segment": UNCERTAIN, **REPEAT, "replays_in_turn": 1}, REPLAY, Reason.REPEAT),
        ({"segment": UNCERTAIN, **REPEAT, "replays_in_turn": 2}, SUPPRESS, Reason.REPLAY_LIMIT),
        ({"segment": UNCERTAIN, **REPEAT, "arguments_valid": False}, ALLOW, Reason.UNCERTAIN),
        ({"segment": UNCERTAIN, "calls_before": 7}, ALLOW, Reason.UNCERTAIN),
        ({"segment": UNCERTAIN, "calls_before": 8}, SUPPRESS, Reason.TRAJECTORY_BUDGET),
        ({"segment": None, "calls_before": 8}, SUPPRESS, Reason.TRAJECTORY_BUDGET),
        ({"segment": UNCERTAIN, "tool_calls_before": 3}, SUPPRESS, Reason.TOOL_BUDGET),
        ({"segment": CERTAIN, "tool_calls_before": 3}, SUPPRESS, Reason.TOOL_BUDGET),
    ],
)
def test_rules_in_their_order(changes, action, reason):
    rules = policy(
        on_repeat="replay",
        tools="{lookup: {max_calls: 3}, send: {side_effects: true}}",
        budget="{calls_per_trajectory: 8}",
    )
    decision = one(rules, features(**changes))
    assert (decision.action, decision.reason) == (action, reason)
    assert (decision.applied, decision.propensity) == (action, 1.0)


@pytest.mark.parametrize(
    ("on_repeat", "action"), [("allow", ALLOW), ("suppress", SUPPRESS), ("replay", REPLAY)]
)
def test_what_becomes_of_a_repeat(on_repeat, action):
    rules = policy(threshold="null", on_repeat=on_repeat)
    decision = one(rules, features(**REPEAT))
    assert decision.action is action
    assert decision.reason == (Reason.NO_RULE if action is ALLOW else Reason.REPEAT)


@pytest.mark.parametrize(
    ("bound", "threshold", "action"),
    [
        ("lower", 1.1, SUPPRESS),
        ("midpoint", 1.1, ALLOW),
        ("midpoint", 1.3, SUPPRESS),
        ("upper", 1.3, ALLOW),
        ("upper", 1.5, SUPPRESS),
        ("lower", 1.0, ALLOW),  # not below: equal
    ],
)
def test_bounds_of_the_signal(bound, threshold, action):
    rules = policy(threshold, signal=f"{{statistic: entropy_mean, bound: {bound}}}")
    assert one(rules, features(segment=segment(entropy=1.0, width=0.4))).action is action


@pytest.mark.parametrize(
    ("statistic", "field"),
    [
        ("entropy_max", "max"),
        ("entropy_mean", "mean"),
        ("entropy_tail_mean", "tail_mean"),
        ("entropy_last_window", "last_window"),
    ],
)
def test_each_entropy_statistic_is_its_own(statistic, field):
    rules = policy("1.0", signal=f"{{statistic: {statistic}}}")
    others = segment(entropy=5.0)
    low = replace(others, **{field: Interval(lower=0.1, upper=0.2)})
    assert one(rules, features(segment=others)).action is ALLOW
    assert one(rules, features(segment=low)).action is SUPPRESS


@pytest.mark.parametrize(
    ("statistic", "threshold", "changes", "action"),
    [
        ("margin_mean", 1.0, {"margin_mean": 1.5}, SUPPRESS),  # a wide margin is certain
        ("margin_mean", 1.0, {"margin_mean": 0.5}, ALLOW),
        ("margin_min", 1.0, {"margin_min": 1.5}, SUPPRESS),
        ("margin_min", 1.0, {"margin_min": 0.5, "margin_mean": 9.0}, ALLOW),
        ("p_tool_call", 0.6, {"p_tool_call": 0.5}, SUPPRESS),  # the model itself hesitates
        ("p_tool_call", 0.6, {"p_tool_call": 0.7}, ALLOW),
    ],
)
def test_the_direction_of_each_statistic(statistic, threshold, changes, action):
    rules = policy(threshold, signal=f"{{statistic: {statistic}}}")
    assert one(rules, features(segment=segment(**changes))).action is action


@pytest.mark.parametrize(
    ("statistic", "changes"),
    [("margin_min", {"margin_min": NAN}), ("p_tool_call", {"p_tool_call": None})],
)
def test_an_unknown_value_fails_open(statistic, changes):
    rules = policy("1.0", signal=f"{{statistic: {statistic}}}")
    decision = one(rules, features(segment=segment(**changes)))
    assert (decision.action, decision.reason) == (ALLOW, Reason.NO_VALUE)


def test_nothing_proposed_nothing_decided():
    assert decide_turn(policy(), Mode.ENFORCE, []) == ()


def test_observe_changes_nothing():
    decision = one(policy(), features(segment=CERTAIN), Mode.OBSERVE)
    assert (decision.action, decision.applied, decision.propensity) == (SUPPRESS, ALLOW, 1.0)


def test_a_decision_names_its_policy():
    rules = policy()
    decision = one(rules, features())
    assert (decision.policy_name, decision.policy_version) == ("test", rules.version)


@pytest.mark.parametrize(
    ("turn", "action", "reasons"),
    [
        ([{"segment": CERTAIN}] * 2, SUPPRESS, ["certain", "certain"]),
        ([{"segment": UNCERTAIN, **REPEAT}] * 2, REPLAY, ["repeat", "repeat"]),
        ([{"segment": UNCERTAIN}] * 2, ALLOW, ["uncertain", "uncertain"]),
        ([{"segment": UNCERTAIN}, {"tool": "send"}], ALLOW, ["uncertain", "side_effects"]),
        ([{"segment": CERTAIN}, {"tool": "send"}], ALLOW, ["mixed_turn"] * 2),
        ([{"segment": UNCERTAIN}, {"segment": UNCERTAIN, **REPEAT}], ALLOW, ["mixed_turn"] * 2),
        ([{"segment": CERTAIN}, {"segment": UNCERTAIN, **REPEAT}], ALLOW, ["mixed_turn"] * 2),
    ],
)
def test_parallel_calls_stand_or_fall_together(turn, action, reasons):
    rules = policy(on_repeat="replay")
    decisions = decide_turn(rules, Mode.ENFORCE, [features(**changes) for changes in turn])
    assert [d.action for d in decisions] == [action] * len(turn)
    assert [d.applied for d in decisions] == [action] * len(turn)
    assert [d.reason for d in decisions] == reasons


GRID = [i / 4001 for i in range(4001)]  # draws; hashed, so as good as random ones


def frequencies(rules, mode, turn):
    """How often each action is applied over many draws, and the propensities logged with it."""
    applied, logged = Counter(), {}
    for draw in GRID:
        decisions = decide_turn(rules, mode, [features(draw=draw, **changes) for changes in turn])
        assert len({(d.applied, d.propensity) for d in decisions}) == 1
        applied[decisions[0].applied] += 1
        logged.setdefault(decisions[0].applied, set()).add(decisions[0].propensity)
    return {a: n / len(GRID) for a, n in applied.items()}, logged


@pytest.mark.parametrize(
    ("options", "mode", "turn", "expected"),
    [
        ({}, Mode.EXPLORE, [{"segment": CERTAIN}], {SUPPRESS: 0.7, ALLOW: 0.3}),
        ({}, Mode.EXPLORE, [{"segment": UNCERTAIN}], {ALLOW: 0.7, SUPPRESS: 0.3}),
        ({}, Mode.EXPLORE, [{"segment": UNCERTAIN, **REPEAT}], {REPLAY: 0.7, ALLOW: 0.3}),
        ({}, Mode.EXPLORE, [{"segment": CERTAIN}] * 2, {SUPPRESS: 0.7, ALLOW: 0.3}),
        # a mixed turn may be explored where every call of it may be gated
        (
            {},
            Mode.EXPLORE,
            [{"segment": CERTAIN}, {"segment": UNCERTAIN}],
            {ALLOW: 0.7, SUPPRESS: 0.3},
        ),
        ({}, Mode.EXPLORE, [{"segment": CERTAIN}, {"tool": "send"}], {ALLOW: 1.0}),
        ({}, Mode.EXPLORE, [{"tool": "unnamed"}], {ALLOW: 1.0}),
        ({}, Mode.EXPLORE, [{"tool": "send"}], {ALLOW: 1.0}),
        ({}, Mode.EXPLORE, [{"tool_choice": "required"}], {ALLOW: 1.0}),
        ({}, Mode.EXPLORE, [{"segment": None}], {ALLOW: 1.0}),
        ({}, Mode.EXPLORE, [{"capture_complete": False}], {ALLOW: 1.0}),
        ({"uniform": "0.6"}, Mode.ENFORCE, [{}], {SUPPRESS: 0.6, ALLOW: 0.4}),
        ({"uniform": "0.6"}, Mode.ENFORCE, [{"segment": None}], {SUPPRESS: 0.6, ALLOW: 0.4}),
        ({"uniform": "0.6"}, Mode.ENFORCE, [REPEAT], {SUPPRESS: 0.6, REPLAY: 0.4}),
        ({"uniform": "0.6"}, Mode.OBSERVE, [{}], {ALLOW: 1.0}),
        ({"uniform": "0.6"}, Mode.EXPLORE, [{}], {SUPPRESS: 0.54, ALLOW: 0.46}),
        ({"uniform": "0.0"}, Mode.ENFORCE, [{}], {ALLOW: 1.0}),
        ({"uniform": "1.0"}, Mode.ENFORCE, [{}], {SUPPRESS: 1.0}),
        # the turn is suppressed where both calls are: below the smaller threshold
        ({"uniform": "0.6"}, Mode.ENFORCE, [{}, {"tool": "rare"}], {SUPPRESS: 0.2, ALLOW: 0.8}),
    ],
)
def test_the_logged_propensity_is_the_true_one(options, mode, turn, expected):
    signal = {"signal": "{statistic: uniform}"} if "uniform" in options else {}
    rules = policy(
        options.get("uniform", "2.0"),
        tools="{lookup: , rare: {threshold: 0.2}, send: {side_effects: true}}",
        on_repeat="replay",
        explore="{epsilon: 0.3}",
        **signal,
    )
    observed, logged = frequencies(rules, mode, turn)
    assert observed == pytest.approx(expected, abs=0.03)
    assert {a: len(p) for a, p in logged.items()} == dict.fromkeys(expected, 1)
    assert {a: p.copy().pop() for a, p in logged.items()} == pytest.approx(expected)


def test_the_two_numbers_of_a_draw_are_independent():
    pairs = [(sub_draw(d, "uniform"), sub_draw(d, "explore")) for d in GRID]
    quarters = Counter((u < 0.5, e < 0.5) for u, e in pairs)
    assert all(abs(n / len(GRID) - 0.25) < 0.03 for n in quarters.values())
    assert all(0 <= u < 1 for pair in pairs for u in pair)


# Replay --------------------------------------------------------------------------------------

ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False)
INTERVALS = st.builds(Interval, lower=st.floats(0, 15), upper=st.floats(0, 15))
SEGMENTS = st.builds(
    SegmentStats,
    start=st.integers(0, 9),
    stop=st.integers(10, 99),
    n_tokens=st.integers(1, 99),
    estimator=st.sampled_from(Estimator),
    mean=INTERVALS,
    max=INTERVALS,
    tail_mean=INTERVALS,
    last_window=INTERVALS,
    margin_mean=ANY_FLOAT | st.just(NAN),
    margin_min=ANY_FLOAT | st.just(NAN),
    p_tool_call=st.none() | st.floats(0, 1),
)
FEATURES = st.builds(
    Features,
    tool=st.sampled_from(["lookup", "calculator", "send_é\n"]),
    segment=st.none() | SEGMENTS,
    capture_complete=st.booleans(),
    tool_choice=st.sampled_from(["auto", "required", "named", "none"]),
    repeats=st.integers(0, 2),
    replayable=st.booleans(),
    calls_before=st.integers(0, 9),
    tool_calls_before=st.integers(0, 9),
    parallel_calls=st.integers(1, 3),
    replays_in_turn=st.integers(0, 3),
    draw=st.floats(0, 1, exclude_max=True),
    arguments_valid=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(FEATURES, min_size=1, max_size=3),
    st.sampled_from(Mode),
    st.sampled_from(sorted(bundled_policies())),
)
def test_stored_features_give_the_same_decisions(turn, mode, name):
    rules = load_policy(name)
    stored = [to_json(f) for f in turn]
    again = [from_json(text.encode()) for text in stored]
    assert decide_turn(rules, mode, again) == decide_turn(rules, mode, turn)
    assert [to_json(f) for f in again] == stored


def test_features_keep_every_bit():
    exact = features(draw=math.nextafter(0.1, 1), segment=segment(entropy=1 / 3, margin_min=NAN))
    again = from_json(to_json(exact))
    assert again.segment is not None
    assert exact.segment is not None
    assert again.draw == exact.draw
    assert again.segment.mean == exact.segment.mean
    assert again.segment.estimator is exact.segment.estimator
    assert math.isnan(again.segment.margin_min)


def test_equal_features_come_back_equal():
    assert from_json(to_json(features())) == features()
    assert from_json(to_json(features(segment=None))) == features(segment=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "schema version None"),
        ('{"schema_version": 3}', "schema version 3; want 2"),
        ('{"schema_version": 1, "segment": null}', "not the features of a call"),
        ('{"schema_version": 1, "segment": null, "more": 1}', "not the features of a call"),
        ('{"schema_version": 1, "segment": {"mean": 3}}', "not the features of a call"),
        ('{"schema_version": 1}', "not the features of a call"),
        ("[]", "not the features of a call"),
        ("nonsense", "Expecting value"),
    ],
)
def test_other_json_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        from_json(text)


def test_a_file_of_schema_version_1_still_reads():
    stored = (
        '{"schema_version":1,"tool":"lookup","segment":{"start":0,"stop":10,"n_tokens":10,'
        '"estimator":"topk","mean":{"lower":1.0,"upper":1.2},"max":{"lower":1.0,"upper":1.2},'
        '"tail_mean":{"lower":1.0,"upper":1.2},"last_window":{"lower":1.0,"upper":1.2},'
        '"margin_mean":2.0,"margin_min":0.5,"p_tool_call":0.7},"capture_complete":true,'
        '"tool_choice":"auto","repeats":0,"replayable":false,"calls_before":0,'
        '"tool_calls_before":0,"parallel_calls":1,"replays_in_turn":0,"draw":0.5,'
        '"arguments_valid":true}'
    )
    assert from_json(stored) == features()


def test_what_version_2_adds_comes_back():
    drafted = segment(entropy=0.5, sum=Interval(lower=1.0, upper=1.5), logprob_sum=-0.25)
    full = features(
        draft=drafted,
        delta=-0.5,
        near_repeats=2,
        result_age_seconds=1.5,
        result_failed=True,
        called_since=("read", "write"),
        circle_rounds=3,
    )
    assert from_json(to_json(full)) == full


@pytest.mark.parametrize("tool", ["lookup", "send", "never named"])
def test_a_forced_call_is_recorded_as_such_whatever_the_tool(tool):
    (decision,) = decide_turn(policy(), Mode.ENFORCE, [features(tool, forced=True)])
    assert decision.action is Action.FORCE
    assert decision.applied is Action.FORCE
    assert decision.reason is Reason.UNCERTAIN_ANSWER

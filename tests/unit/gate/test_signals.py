"""What decides: each statistic, drafts, the learned model, and signals of single tools."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.errors import ConfigError
from entrogate.gate import Reason, Statistic, decide_turn, load_policy, parse_policy
from entrogate.gate.rules import call_value, propose
from entrogate.gate.vector import FEATURES, learned_value, named_values
from entrogate.types import Action, Interval, Mode
from tests.unit.gate.factory import features, policy, segment

SUMS = {"sum": Interval(lower=3.0, upper=5.0), "logprob_sum": -2.5}
DRAFT = segment(entropy=0.5, width=0.0, n_tokens=2, margin_min=3.0, **SUMS)


def reason_of(rules, seen):
    return propose(rules, seen, 0.5).reason


@pytest.mark.parametrize(
    ("statistic", "value"),
    [
        ("entropy_sum", 5.0),
        ("entropy_sum, bound: lower", 3.0),
        ("entropy_sum, bound: midpoint", 4.0),
        ("logprob_sum", -2.5),
        ("p_tool_call", 0.7),
        ("draft_entropy_max", 0.5),
        ("draft_entropy_sum", 5.0),
        ("draft_margin_min", 3.0),
        ("draft_logprob_sum", -2.5),
    ],
)
def test_the_value_that_is_compared(statistic, value):
    rules = policy(signal=f"{{statistic: {statistic}}}")
    seen = features(segment=segment(**SUMS), draft=DRAFT)
    assert call_value(rules.signal, seen) == value


@pytest.mark.parametrize("statistic", [s for s in Statistic if s.base == "logprob_sum"])
def test_a_likely_text_is_certain(statistic):
    rules = policy(threshold="-3.0", signal=f"{{statistic: {statistic.value}}}")
    seen = features(segment=segment(**SUMS), draft=DRAFT)
    assert reason_of(rules, seen) is Reason.CERTAIN
    stricter = policy(threshold="-2.5", signal=f"{{statistic: {statistic.value}}}")
    assert reason_of(stricter, seen) is Reason.UNCERTAIN


def test_a_measurement_from_before_the_sums_fails_open():
    rules = policy(signal="{statistic: entropy_sum}")
    assert reason_of(rules, features()) is Reason.NO_VALUE


def test_a_draft_decides_where_there_is_no_segment():
    rules = policy(signal="{statistic: draft_entropy_max}")
    assert rules.signal.min_tokens == 1
    assert reason_of(rules, features(segment=None)) is Reason.NO_DRAFT
    assert reason_of(rules, features(segment=None, draft=DRAFT)) is Reason.CERTAIN
    gap = features(segment=None, draft=DRAFT, capture_complete=False)
    assert reason_of(rules, gap) is Reason.CERTAIN  # the draft has a capture of its own


def test_a_draft_may_have_to_be_longer():
    rules = policy(signal="{statistic: draft_entropy_max, min_tokens: 3}")
    assert reason_of(rules, features(draft=DRAFT)) is Reason.SHORT_SEGMENT


def test_a_call_that_lacks_its_draft_is_not_explored():
    rules = policy(signal="{statistic: draft_entropy_max}", explore="{epsilon: 1.0}")
    (decision,) = decide_turn(rules, Mode.EXPLORE, [features()])
    assert (decision.applied, decision.propensity) == (Action.ALLOW, 1.0)


def test_a_tool_can_have_its_own_signal():
    rules = policy(
        tools="{lookup: , search: {signal: {statistic: margin_min}, threshold: 0.4}}",
        threshold="0.5",
    )
    assert rules.signal_for("lookup").statistic is Statistic.ENTROPY_MAX
    assert rules.signal_for("search").statistic is Statistic.MARGIN_MIN
    assert rules.signal_for("unknown").statistic is Statistic.ENTROPY_MAX
    assert reason_of(rules, features("search")) is Reason.CERTAIN  # margin 0.5 is above 0.4
    assert reason_of(rules, features("lookup")) is Reason.UNCERTAIN


def test_a_tool_overrides_a_default_with_nothing():
    text = (
        "schema_version: 1\nname: test\ndefaults: {replay_for_seconds: 60.0}\n"
        "tools: {lookup: {replay_for_seconds: null}, search: }\n"
    )
    rules = parse_policy(text, "test.yaml")
    lookup, search = rules.rule("lookup"), rules.rule("search")
    assert lookup is not None
    assert search is not None
    assert (lookup.replay_for_seconds, search.replay_for_seconds) == (None, 60.0)


LEARNED = (
    "{statistic: learned, model: {intercept: 1.0,"
    " weights: {entropy_max: -2.0, tool=lookup: 0.5}, missing: {entropy_max: 2.0}}}"
)


def test_the_learned_probability_by_hand():
    rules = policy(threshold="0.4", signal=LEARNED)
    seen = features(segment=segment(entropy=0.9, width=0.2))  # midpoint 1.0
    assert call_value(rules.signal, seen) == pytest.approx(1 / (1 + math.exp(0.5)))
    assert reason_of(rules, seen) is Reason.UNCERTAIN
    sure = features(segment=segment(entropy=0.4, width=0.2))
    assert reason_of(rules, sure) is Reason.CERTAIN
    without = call_value(rules.signal, features(segment=None))
    assert without == pytest.approx(1 / (1 + math.exp(2.5)))  # what stands for the missing one
    other = call_value(rules.signal, features("search", segment=None))
    assert other == pytest.approx(1 / (1 + math.exp(3.0)))  # another tool adds nothing


def test_an_unknown_feature_without_a_stand_in_fails_open():
    assert learned_value(0.0, {"delta": 1.0}, {}, features()) is None
    rules = policy(signal="{statistic: learned, model: {intercept: 0.0, weights: {delta: 1.0}}}")
    assert reason_of(rules, features()) is Reason.NO_VALUE


@given(st.floats(-1e308, 1e308), st.floats(-1e308, 1e308))
def test_no_weight_makes_it_leave_0_to_1(intercept, weight):
    value = learned_value(intercept, {"n_tokens": weight}, {}, features())
    assert value is None or 0.0 <= value <= 1.0


def test_every_feature_has_a_value_or_is_known_to_be_missing():
    assert set(named_values(features())) == {*FEATURES, "tool=lookup"}
    full = named_values(features(draft=DRAFT, segment=segment(**SUMS), delta=0.25))
    assert None not in full.values()
    assert named_values(features(segment=segment(margin_min=math.nan)))["margin_min"] is None


@pytest.mark.parametrize(
    ("signal", "says"),
    [
        ("{statistic: learned}", "needs a 'model'"),
        ("{model: {intercept: 0.0, weights: {delta: 1.0}}}", "belongs to the statistic 'learned'"),
        (
            "{statistic: learned, model: {intercept: 0.0, weights: {entropy_mx: 1.0}}}",
            "did you mean 'entropy_max'",
        ),
        ("{statistic: draft_entropy_max, draft_tokens: 65}", "less than or equal to 64"),
        ("{statistic: draft_margin_min, bound: lower}", "'bound' chooses between the bounds"),
        ("{statistic: draft_entropy}", "did you mean"),
    ],
)
def test_what_a_signal_cannot_be(signal, says):
    with pytest.raises(ConfigError, match=says):
        policy(signal=signal)


def test_fields_that_say_nothing_leave_the_version_as_it_was():
    """Versions of stored policies must not change with the schema."""
    assert (
        load_policy("balanced").version
        == parse_policy(load_policy("balanced").model_dump_json(exclude_unset=True), "b").version
    )
    plain, explicit = policy(), policy(audit="null", circle="null", signal="{draft_tokens: 8}")
    assert plain.version == explicit.version
    assert plain.version == "497bab6d2019709f"  # as before there were these fields

"""What is settled before the arguments of a call are known stays so, whatever they are."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from entrogate.gate import parse_policy
from entrogate.gate.decide import decide_turn
from entrogate.gate.unseen import settled
from entrogate.types import Action, Mode
from tests.unit.gate.factory import features, segment

POLICY = """
schema_version: 1
name: test
tools:
  lookup:
    threshold: {threshold}
    on_repeat: {on_repeat}
    max_calls: {max_calls}
    normalise: {{case: {case}}}
    replay_for_seconds: {seconds}
    invalidated_by: {invalidated_by}
circle: {circle}
explore: {{epsilon: 0.5}}
audit: {{share: 0.5}}
"""

policies = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from(["null", "1.5"]),
        "on_repeat": st.sampled_from(["allow", "replay", "suppress"]),
        "max_calls": st.sampled_from(["null", "2"]),
        "case": st.sampled_from(["true", "false"]),
        "seconds": st.sampled_from(["null", "60"]),
        "invalidated_by": st.sampled_from(["[]", "[write]"]),
        "circle": st.sampled_from(["null", "{rounds: 2}"]),
    }
).map(lambda parts: parse_policy(POLICY.format(**parts), "test.yaml"))

known = st.fixed_dictionaries(
    {
        "segment": st.sampled_from([None, segment(1.0), segment(2.0), segment(1.0, n_tokens=2)]),
        "calls_before": st.sampled_from([1, 3]),
        "tool_calls_before": st.sampled_from([1, 2]),
        "replays_in_turn": st.sampled_from([0, 2]),
        "draw": st.floats(0, 1, exclude_max=True),
    }
)

arguments = st.fixed_dictionaries(
    {
        "repeats": st.sampled_from([0, 1, 3]),
        "near_repeats": st.sampled_from([0, 1, 3]),
        "replayable": st.booleans(),
        "result_age_seconds": st.sampled_from([None, 0.0, 1e6]),
        "result_failed": st.booleans(),
        "failures": st.sampled_from([0, 4, 5]),
        "called_since": st.sampled_from([(), ("write",)]),
        "circle_rounds": st.sampled_from([0, 1, 2, 9]),
        "arguments_valid": st.booleans(),
    }
)


@given(policies, st.sampled_from([Mode.ENFORCE, Mode.EXPLORE]), known, arguments)
def test_arguments_do_not_change_what_is_settled(policy, mode, early, late):
    before = features(**early)
    done = settled(policy, mode, before)

    if done is not None:
        assert decide_turn(policy, mode, [replace(before, **late)])[0].applied is done


@given(policies, st.sampled_from([Mode.ENFORCE, Mode.EXPLORE]), known)
def test_a_first_call_repeats_nothing_and_is_always_settled(policy, mode, early):
    before = features(**(early | {"calls_before": 0, "tool_calls_before": 0}))
    assert settled(policy, mode, before) is decide_turn(policy, mode, [before])[0].applied


def test_a_repeat_may_be_outdated():
    """The alternative to suppressing a repeat is to let it through, and the reverse if outdated."""
    text = (
        "schema_version: 1\nname: r\nmode: explore\nexplore: {epsilon: 0.5}\n"
        "tools: {lookup: {threshold: 1.0, on_repeat: suppress, invalidated_by: [write]}}\n"
    )
    policy = parse_policy(text, "r.yaml")
    before = features(segment=None, calls_before=1, tool_calls_before=1)
    draws = [replace(before, draw=number / 100) for number in range(100)]
    flipped = [
        draw
        for draw in draws
        if decide_turn(policy, Mode.EXPLORE, [replace(draw, repeats=1)])[0].applied is Action.ALLOW
    ]
    assert 20 < len(flipped) < 80
    assert [settled(policy, Mode.EXPLORE, draw) for draw in flipped] == [None] * len(flipped)

"""Rules on repeats and circles: in which order, and what is still replayed."""

import json
from typing import Any

import pytest

from entrogate.errors import ConfigError
from entrogate.gate import Reason, decide_turn, parse_policy
from entrogate.gate.features import from_json, to_json
from entrogate.types import Action, Mode
from tests.unit.gate.factory import features, policy, segment

ALLOW, SUPPRESS, REPLAY = Action.ALLOW, Action.SUPPRESS, Action.REPLAY
KNOWN: dict[str, Any] = {"repeats": 1, "replayable": True, "segment": None}
TOOLS = (
    "{lookup: {replay_for_seconds: 60, invalidated_by: [write], normalise: {case: true}},"
    " write: {side_effects: true, polling: true}}"
)


def one(rules, proposed, mode=Mode.ENFORCE):
    (decision,) = decide_turn(rules, mode, [proposed])
    return decision


@pytest.mark.parametrize(
    ("on_repeat", "changes", "action", "reason"),
    [
        ("replay", {"result_age_seconds": 60.0}, REPLAY, Reason.REPEAT),
        ("replay", {"result_age_seconds": 0.0}, REPLAY, Reason.REPEAT),
        ("replay", {"result_age_seconds": 60.1}, ALLOW, Reason.RESULT_STALE),
        ("replay", {"result_age_seconds": -1.0}, ALLOW, Reason.RESULT_STALE),
        ("replay", {"result_age_seconds": None}, ALLOW, Reason.RESULT_STALE),
        ("replay", {"result_age_seconds": float("nan")}, ALLOW, Reason.RESULT_STALE),
        ("replay", {"called_since": ("read", "write")}, ALLOW, Reason.RESULT_INVALIDATED),
        ("replay", {"called_since": ("read",)}, REPLAY, Reason.REPEAT),
        ("replay", {"result_failed": True}, ALLOW, Reason.RESULT_FAILED),
        ("replay", {"result_failed": True, "replays_in_turn": 2}, ALLOW, Reason.RESULT_FAILED),
        ("replay", {"result_failed": True, "failures": 4}, ALLOW, Reason.RESULT_FAILED),
        ("replay", {"result_failed": True, "failures": 5}, SUPPRESS, Reason.RETRY_LIMIT),
        (
            "replay",
            {"result_failed": True, "failures": 8, "called_since": ("write",)},
            ALLOW,
            Reason.RESULT_INVALIDATED,
        ),
        ("replay", {"repeats": 0, "near_repeats": 1}, REPLAY, Reason.REPEAT),
        ("replay", {"replayable": False}, ALLOW, Reason.RESULT_MISSING),
        ("suppress", {}, SUPPRESS, Reason.REPEAT),
        ("suppress", {"repeats": 0, "near_repeats": 1}, SUPPRESS, Reason.REPEAT),
        ("suppress", {"result_age_seconds": 61.0}, ALLOW, Reason.RESULT_STALE),
        ("suppress", {"called_since": ("write",)}, ALLOW, Reason.RESULT_INVALIDATED),
        ("suppress", {"result_failed": True}, SUPPRESS, Reason.REPEAT),  # the model has the error
        ("allow", {"result_age_seconds": 61.0, "result_failed": True}, ALLOW, Reason.NO_RULE),
    ],
)
def test_what_becomes_of_a_repeat(on_repeat, changes, action, reason):
    rules = policy("null", tools=TOOLS, on_repeat=on_repeat)
    decision = one(rules, features(**{**KNOWN, "result_age_seconds": 5.0, **changes}))
    assert (decision.action, decision.reason) == (action, reason)


def test_near_repeats_count_only_where_a_rule_makes_them():
    rules = policy("null", on_repeat="replay")
    near = features(**{**KNOWN, "repeats": 0, "near_repeats": 3})
    assert one(rules, near).action is ALLOW


def test_a_result_of_any_age_is_replayed_where_no_limit_is_set():
    rules = policy("null", on_repeat="replay")
    assert one(rules, features(**KNOWN)).action is REPLAY
    assert one(rules, features(**KNOWN, result_age_seconds=1e9)).action is REPLAY


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"circle_rounds": 3}, SUPPRESS, Reason.CIRCLE),
        ({"circle_rounds": 9, "capture_complete": False}, SUPPRESS, Reason.CIRCLE),
        ({"circle_rounds": 2}, REPLAY, Reason.REPEAT),
        ({"circle_rounds": 3, "called_since": ("write",)}, SUPPRESS, Reason.CIRCLE),
        ({"circle_rounds": 3, "segment": segment(entropy=0.1)}, SUPPRESS, Reason.CIRCLE),
        ({"circle_rounds": 3, "arguments_valid": False}, ALLOW, Reason.NO_SEGMENT),
        ({"circle_rounds": 3, "tool": "write"}, ALLOW, Reason.SIDE_EFFECTS),
        ({"circle_rounds": 3, "tool": "unnamed"}, ALLOW, Reason.NOT_NAMED),
        ({"circle_rounds": 3, "tool": "poll"}, ALLOW, Reason.NO_SEGMENT),
        ({"circle_rounds": 3, "tool_choice": "required"}, ALLOW, Reason.TOOL_CHOICE),
        ({"circle_rounds": 3, "calls_before": 8}, SUPPRESS, Reason.TRAJECTORY_BUDGET),
    ],
)
def test_circles_come_after_budgets_and_before_the_signal(changes, action, reason):
    tools = TOOLS[:-1] + ", poll: {polling: true, on_repeat: allow}}"
    rules = policy(
        "2.0",
        tools=tools,
        on_repeat="replay",
        circle="{rounds: 3}",
        budget="{calls_per_trajectory: 8}",
    )
    decision = one(rules, features(**{**KNOWN, "result_age_seconds": 5.0, **changes}))
    assert (decision.action, decision.reason) == (action, reason)


def test_no_circle_without_the_rule():
    assert one(policy("null"), features(circle_rounds=99)).action is ALLOW


def test_a_circle_is_explored_like_any_suppression():
    rules = policy("null", circle="{}", explore="{epsilon: 0.25}")
    found = [
        one(rules, features(circle_rounds=3, draw=i / 1000), Mode.EXPLORE) for i in range(1000)
    ]
    assert {(d.applied, d.propensity) for d in found} == {(SUPPRESS, 0.75), (ALLOW, 0.25)}


def test_what_the_rules_saw_is_stored_with_the_decision():
    seen = features(
        near_repeats=2,
        result_age_seconds=1.5,
        result_failed=True,
        called_since=("a", "b"),
        circle_rounds=4,
    )
    assert from_json(to_json(seen)) == seen


def test_decisions_of_before_replay_as_they_were():
    """Features of version 1 know nothing of ages and failures: repeats are replayed as ever."""
    stored = json.loads(to_json(features(**KNOWN))) | {"schema_version": 1}
    for name in ("near_repeats", "result_age_seconds", "result_failed", "called_since"):
        del stored[name]
    text = json.dumps(stored)
    assert one(policy("null", on_repeat="replay"), from_json(text)).action is REPLAY


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("{t: {side_effects: true, invalidated_by: [w]}}", "never gated: remove 'invalidated_by'"),
        ("{t: {side_effects: true, replay_for_seconds: 9}}", "remove 'replay_for_seconds'"),
        ("{t: {replay_for_seconds: 0}}", "'tools.t.replay_for_seconds'"),
        ("{t: {replay_for_seconds: .inf}}", "a finite number"),
        ("{t: {replay_for_seconds: '5'}}", "is a number; found '5'"),
        ("{t: {invalidated_by: write}}", "'tools.t.invalidated_by' is a list; found 'write'"),
        ("{t: {invalidated_by: ['w*']}}", "'w*' names no tool"),
        ("{t: {invalidated_by: ['']}}", "'' names no tool"),
        ("{t: {normalise: {Case: true}}}", "unknown key 'Case'; did you mean 'case'?"),
        ("{t: {normalise: true}}", "'tools.t.normalise' is a mapping"),
        ("{t: {normalise: {ignore: ['']}}}", "at least 1 character"),
        ("{t: {polling: 1}}", "is true or false; found 1"),
    ],
)
def test_what_a_policy_may_not_say(tools, message):
    with pytest.raises(ConfigError) as error:
        policy(tools=tools)
    assert message in str(error.value), error.value
    assert str(error.value).startswith("test.yaml:4:")


@pytest.mark.parametrize(
    ("circle", "message"),
    [
        ("{rounds: 1}", "2"),
        ("{rounds: 2.5}", "a whole number"),
        ("{round: 3}", "did you mean"),
        ("3", "a mapping"),
    ],
)
def test_what_a_circle_may_not_say(circle, message):
    with pytest.raises(ConfigError, match=message):
        policy(circle=circle)


def test_defaults_reach_the_tools_and_are_overridden():
    text = """
schema_version: 1
name: t
defaults: {on_repeat: replay, replay_for_seconds: 30, invalidated_by: [w], normalise: {case: true}}
tools:
  a:
  b: {replay_for_seconds: null, invalidated_by: [], normalise: {}}
  c: {side_effects: true}
"""
    rules = parse_policy(text, "t.yaml")
    a, b, c = (rules.rule(name) for name in "abc")
    assert a is not None
    assert b is not None
    assert c is not None
    assert (a.replay_for_seconds, a.invalidated_by, a.normalise.case) == (30, ("w",), True)
    assert (b.replay_for_seconds, b.invalidated_by, b.normalise.changes) == (None, (), False)
    assert not c.normalise.changes


def test_versions_of_policies_that_do_not_use_it_stay_what_they_were():
    plain = parse_policy("schema_version: 1\nname: t\ntools: {a: {on_repeat: replay}}\n", "t")
    assert plain.version == "35f88b77f85b2f58"


def test_polling_goes_on_through_errors():
    rules = policy("null", tools="{lookup: {on_repeat: replay, polling: true}}")
    failing = features(**KNOWN, result_failed=True, failures=8)
    assert one(rules, failing).reason == Reason.RESULT_FAILED

"""Policies compiled for the engine: the same outcome as `decide_turn` on either side."""

import math
from typing import Any

import pytest

from entrogate.gate import parse_policy
from entrogate.gate.compile import compile_gate
from entrogate.gate.schema import Policy
from entrogate.segments.spans import Markers
from entrogate.types import Mode
from tests.unit.gate.factory import features

MARKERS = Markers(think_open=1, think_close=2, call_open=3, call_close=4)
BLANKS = frozenset({5})


def policy(tools: str, rest: str = "", threshold: str = "2.0") -> Policy:
    text = (
        f"schema_version: 1\nname: test\ndefaults: {{threshold: {threshold}}}\n"
        f"tools: {tools}\n{rest}"
    )
    return parse_policy(text, "test.yaml", can_force=True)


def compiled(
    found: Policy, *tools: str, mode: Mode = Mode.ENFORCE, may_force: bool = True, **changed: object
):
    offered = [features(tool, segment=None, **changed) for tool in tools]
    return compile_gate(found, mode, offered, MARKERS, blank_ids=BLANKS, may_force=may_force)


def test_a_certain_call_is_suppressed() -> None:
    numbers = compiled(policy("{lookup: , search: }"), "lookup", "search")
    assert numbers is not None
    assert numbers.call_id == 3
    assert numbers.threshold == 2.0
    assert numbers.suppress_certain
    assert not numbers.suppress_uncertain
    assert numbers.force_above == math.inf
    assert numbers.blank_ids == BLANKS


def test_of_margins_the_larger_is_certain() -> None:
    numbers = compiled(policy("{lookup: }", "signal: {statistic: margin_mean}\n"), "lookup")
    assert numbers is not None
    assert numbers.suppress_certain


@pytest.mark.parametrize(
    ("tools", "offered"),
    [
        ("{lookup: }", ("lookup", "send")),  # a tool without a rule
        ("{lookup: , send: {side_effects: true}}", ("lookup", "send")),
        ("{lookup: , search: {threshold: 1.0}}", ("lookup", "search")),
    ],
)
def test_tools_that_are_treated_differently_are_left_to_the_gateway(
    tools: str, offered: tuple[str, ...]
) -> None:
    assert compiled(policy(tools), *offered) is None


def test_nothing_is_done_while_observing() -> None:
    assert compiled(policy("{lookup: }"), "lookup", mode=Mode.OBSERVE) is None


FORCE = "force: {tool: lookup, threshold: 1.5}\n"


@pytest.mark.parametrize("tools", ["{}", "{lookup: }", "{lookup: , search: {threshold: 1.0}}"])
def test_force_needs_no_rule_for_a_tool(tools: str) -> None:
    numbers = compiled(policy(tools, FORCE), "lookup", "search")
    assert numbers is not None
    assert numbers.force_above == 1.5
    assert not numbers.suppress_certain


def test_force_only_where_its_tool_is_offered_and_the_turn_allows_it() -> None:
    assert compiled(policy("{}", FORCE), "search") is None
    assert compiled(policy("{}", FORCE), "lookup", may_force=False) is None
    both = compiled(policy("{lookup: }", FORCE), "lookup", may_force=False)
    assert both is not None
    assert both.suppress_certain
    assert both.force_above == math.inf


def test_a_tool_that_is_only_observed_is_not_touched() -> None:
    rules = policy("{lookup: , search: }", "force: {tool: lookup, threshold: 4.0}\n")
    offered = [features(tool, segment=None) for tool in ("lookup", "search")]

    def numbers(*observed: str):
        return compile_gate(
            rules,
            Mode.ENFORCE,
            offered,
            MARKERS,
            blank_ids=BLANKS,
            observed=frozenset(observed),
        )

    both = numbers()
    assert both is not None
    assert both.suppress_certain
    other = numbers("search")  # any call might be one of it
    assert other is not None
    assert not other.suppress_certain
    assert other.force_above == 4.0
    assert numbers("lookup") is None
    assert numbers("elsewhere") == both


EXPLORE = "mode: explore\nexplore: {epsilon: 1.0}\n"  # the alternative, always


@pytest.mark.parametrize("on_repeat", ["replay", "suppress"])
def test_a_call_that_may_be_a_repeat_is_left_to_the_gateway_where_that_matters(
    on_repeat: str,
) -> None:
    """Exploring suppresses an uncertain call, but lets a repeat through."""
    found = policy(f"{{lookup: {{on_repeat: {on_repeat}}}}}", EXPLORE)
    first = compiled(found, "lookup", mode=Mode.EXPLORE)
    assert first is not None
    assert (first.suppress_certain, first.suppress_uncertain) == (False, True)
    later: dict[str, Any] = {"calls_before": 2, "tool_calls_before": 1}
    assert compiled(found, "lookup", mode=Mode.EXPLORE, **later) is None
    other: dict[str, Any] = {"calls_before": 2, "tool_calls_before": 0}
    assert compiled(found, "lookup", mode=Mode.EXPLORE, **other) == first
    enforced = compiled(found, "lookup", **later)
    assert enforced is not None
    assert (enforced.suppress_certain, enforced.suppress_uncertain) == (True, False)


def test_a_repeat_that_the_policy_does_not_mind_changes_nothing() -> None:
    found = policy("{lookup: }", EXPLORE)
    later: dict[str, Any] = {"calls_before": 2, "tool_calls_before": 1}
    numbers = compiled(found, "lookup", mode=Mode.EXPLORE, **later)
    assert numbers is not None
    assert numbers.suppress_uncertain

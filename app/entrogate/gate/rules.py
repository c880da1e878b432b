"""What a policy says of one call, without modes: the rules in their order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entrogate.gate.reasons import Reason
from entrogate.gate.schema import OnRepeat, Policy, Statistic, ToolRule
from entrogate.types import Action, Features, Interval, SegmentStats

REPLAYS_PER_TURN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What the rules say of one call."""

    action: Action
    reason: Reason


def propose(policy: Policy, features: Features, uniform: float) -> Proposal:
    """The first rule that applies to one call.

    ``uniform`` in [0, 1) is what the statistic `uniform` compares with the threshold.
    """
    if features.forced:  # it is done already, whatever tool the model chose then
        return Proposal(action=Action.FORCE, reason=Reason.UNCERTAIN_ANSWER)
    rule = policy.rule(features.tool)
    if rule is None:
        return Proposal(action=Action.ALLOW, reason=Reason.NOT_NAMED)
    if rule.side_effects:
        return Proposal(action=Action.ALLOW, reason=Reason.SIDE_EFFECTS)
    if features.tool_choice != "auto":
        return Proposal(action=Action.ALLOW, reason=Reason.TOOL_CHOICE)
    exhausted = _exhausted(policy, rule, features)
    if exhausted is not None:
        return Proposal(action=Action.SUPPRESS, reason=exhausted)
    certainty = _certainty(policy, rule, features, uniform)
    if certainty in (Reason.CERTAIN, Reason.RANDOM):
        return Proposal(action=Action.SUPPRESS, reason=certainty)
    return _repeat(rule, features) or Proposal(action=Action.ALLOW, reason=certainty)


def _exhausted(policy: Policy, rule: ToolRule, features: Features) -> Reason | None:
    total = policy.budget.calls_per_trajectory
    if total is not None and features.calls_before >= total:
        return Reason.TRAJECTORY_BUDGET
    if rule.max_calls is not None and features.tool_calls_before >= rule.max_calls:
        return Reason.TOOL_BUDGET
    return None


def _certainty(policy: Policy, rule: ToolRule, features: Features, uniform: float) -> Reason:
    signal = policy.signal
    if rule.threshold is None:
        return Reason.NO_RULE
    if signal.statistic is Statistic.UNIFORM:
        return Reason.RANDOM if uniform < rule.threshold else Reason.UNCERTAIN
    if not features.capture_complete:
        return Reason.CAPTURE_GAP
    if features.segment is None:
        return Reason.NO_SEGMENT
    if features.segment.n_tokens < signal.min_tokens:
        return Reason.SHORT_SEGMENT
    value = signal_value(policy, features.segment)
    if value is None:
        return Reason.NO_VALUE
    above = value > rule.threshold
    below = value < rule.threshold
    certain = above if signal.statistic.certain_when_above else below
    return Reason.CERTAIN if certain else Reason.UNCERTAIN


def signal_value(policy: Policy, segment: SegmentStats) -> float | None:
    """The number that the policy compares with a threshold; None where it is unknown.

    Also None for the statistic `uniform`, which does not look at the segment.
    """
    statistic = policy.signal.statistic
    intervals = {
        Statistic.ENTROPY_MAX: segment.max,
        Statistic.ENTROPY_MEAN: segment.mean,
        Statistic.ENTROPY_TAIL_MEAN: segment.tail_mean,
        Statistic.ENTROPY_LAST_WINDOW: segment.last_window,
    }
    if statistic in intervals:
        value = _bound(intervals[statistic], policy.signal.bound)
    elif statistic is Statistic.MARGIN_MEAN:
        value = segment.margin_mean
    elif statistic is Statistic.MARGIN_MIN:
        value = segment.margin_min
    elif statistic is Statistic.P_TOOL_CALL:
        value = segment.p_tool_call
    else:
        value = None
    return None if value is None or math.isnan(value) else value


def _bound(interval: Interval, bound: str) -> float:
    if bound == "midpoint":
        return interval.midpoint
    return interval.lower if bound == "lower" else interval.upper


def _repeat(rule: ToolRule, features: Features) -> Proposal | None:
    """None where the call repeats nothing or the policy does not mind."""
    if not features.repeats or not features.arguments_valid:
        return None
    if rule.on_repeat is OnRepeat.ALLOW:
        return None
    if rule.on_repeat is OnRepeat.SUPPRESS:
        return Proposal(action=Action.SUPPRESS, reason=Reason.REPEAT)
    if not features.replayable:
        return Proposal(action=Action.ALLOW, reason=Reason.RESULT_MISSING)
    if features.replays_in_turn >= REPLAYS_PER_TURN:
        return Proposal(action=Action.SUPPRESS, reason=Reason.REPLAY_LIMIT)
    return Proposal(action=Action.REPLAY, reason=Reason.REPEAT)

"""What a policy says of one call, without modes: the rules in their order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entrogate.gate.reasons import Reason
from entrogate.gate.schema import OnRepeat, Policy, Signal, Statistic, ToolRule
from entrogate.gate.vector import learned_value
from entrogate.types import Action, Features, Interval, SegmentStats

REPLAYS_PER_TURN = 2
MOST_FAILURES = 5  # errors in a row after which the same call is not made again


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
    if _in_a_circle(policy, rule, features):
        return Proposal(action=Action.SUPPRESS, reason=Reason.CIRCLE)
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


def _in_a_circle(policy: Policy, rule: ToolRule, features: Features) -> bool:
    if policy.circle is None or rule.polling or not features.arguments_valid:
        return False
    return features.circle_rounds >= policy.circle.rounds


def _certainty(policy: Policy, rule: ToolRule, features: Features, uniform: float) -> Reason:
    signal = policy.signal_for(features.tool)
    if rule.threshold is None:
        return Reason.NO_RULE
    if signal.statistic is Statistic.UNIFORM:
        return Reason.RANDOM if uniform < rule.threshold else Reason.UNCERTAIN
    if not features.capture_complete and not signal.statistic.is_draft:
        return Reason.CAPTURE_GAP
    if signal.needs_draft and features.draft is None:
        return Reason.NO_DRAFT
    if signal.statistic is not Statistic.LEARNED:
        measured = features.draft if signal.statistic.is_draft else features.segment
        if measured is None:
            return Reason.NO_SEGMENT
        if measured.n_tokens < signal.min_tokens:
            return Reason.SHORT_SEGMENT
    value = call_value(signal, features)
    if value is None:
        return Reason.NO_VALUE
    above = value > rule.threshold
    below = value < rule.threshold
    certain = above if signal.statistic.certain_when_above else below
    return Reason.CERTAIN if certain else Reason.UNCERTAIN


def call_value(signal: Signal, features: Features) -> float | None:
    """The number that ``signal`` compares with a threshold for one call; None where unknown."""
    if signal.model is not None:
        model = signal.model
        return learned_value(model.intercept, model.weights, model.missing, features)
    segment = features.draft if signal.statistic.is_draft else features.segment
    return None if segment is None else signal_value(signal, segment)


def signal_value(signal: Signal, segment: SegmentStats) -> float | None:
    """The statistic of ``signal`` over a segment or a draft; None where it is unknown.

    Also None for `uniform` and `learned`, which are no statistics of one segment.
    """
    intervals = {
        "entropy_max": segment.max,
        "entropy_mean": segment.mean,
        "entropy_tail_mean": segment.tail_mean,
        "entropy_last_window": segment.last_window,
        "entropy_sum": segment.sum,
    }
    numbers = {
        "margin_mean": segment.margin_mean,
        "margin_min": segment.margin_min,
        "logprob_sum": segment.logprob_sum,
        "p_tool_call": segment.p_tool_call,
    }
    name = signal.statistic.base
    interval = intervals.get(name)
    value = numbers.get(name) if interval is None else _bound(interval, signal.bound)
    return None if value is None or math.isnan(value) else value


def _bound(interval: Interval, bound: str) -> float:
    if bound == "midpoint":
        return interval.midpoint
    return interval.lower if bound == "lower" else interval.upper


def _repeat(rule: ToolRule, features: Features) -> Proposal | None:
    """None where the call repeats nothing or the policy does not mind."""
    repeats = max(features.repeats, features.near_repeats if rule.normalise.changes else 0)
    if not repeats or not features.arguments_valid or rule.on_repeat is OnRepeat.ALLOW:
        return None
    replays = rule.on_repeat is OnRepeat.REPLAY
    if replays and not features.replayable:
        return Proposal(action=Action.ALLOW, reason=Reason.RESULT_MISSING)
    outdated = _outdated(rule, features)
    if outdated is not None:
        return Proposal(action=Action.ALLOW, reason=outdated)
    if not replays:
        return Proposal(action=Action.SUPPRESS, reason=Reason.REPEAT)
    if features.result_failed:
        if features.failures >= MOST_FAILURES and not rule.polling:
            return Proposal(action=Action.SUPPRESS, reason=Reason.RETRY_LIMIT)
        return Proposal(action=Action.ALLOW, reason=Reason.RESULT_FAILED)
    if features.replays_in_turn >= REPLAYS_PER_TURN:
        return Proposal(action=Action.SUPPRESS, reason=Reason.REPLAY_LIMIT)
    return Proposal(action=Action.REPLAY, reason=Reason.REPEAT)


def _outdated(rule: ToolRule, features: Features) -> Reason | None:
    """Why the earlier result may not hold any more; None where it does."""
    if not set(rule.invalidated_by).isdisjoint(features.called_since):
        return Reason.RESULT_INVALIDATED
    age, limit = features.result_age_seconds, rule.replay_for_seconds
    if limit is not None and (age is None or not 0.0 <= age <= limit):
        return Reason.RESULT_STALE
    return None

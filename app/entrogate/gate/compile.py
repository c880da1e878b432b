"""A policy as the few numbers that the gate inside the engine needs (`entrogate.engine.gate`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from entrogate.engine.gate import STATISTICS, GateNumbers
from entrogate.gate.schema import Policy, Signal
from entrogate.gate.unseen import settled
from entrogate.segments.spans import Markers
from entrogate.types import Action, Estimator, Features, Interval, Mode, SegmentStats


def compile_gate(
    policy: Policy,
    mode: Mode,
    features: Sequence[Features],
    markers: Markers,
    *,
    blank_ids: frozenset[int],
    may_force: bool = True,
    observed: frozenset[str] = frozenset(),
) -> GateNumbers | None:
    """What the engine is to do about a call of any of the offered tools; None: nothing.

    ``features`` are those of a first call of each offered tool as far as they are known before a
    token is sampled. The engine sees neither which tool is called nor the arguments, so it acts
    only where all calls are treated alike; the rest is decided in the gateway, by the same policy.
    What it would do is found by asking `decide_turn` on either side of the threshold. Calls of the
    tools in ``observed`` are not to be touched, whatever the mode.
    """
    if mode is Mode.OBSERVE or markers.call_open is None or not features:
        return None
    tools = [f.tool for f in features]
    signals = [policy.signal_for(tool) for tool in tools]
    signal = signals[0]
    statistic = signal.statistic.value
    if statistic not in STATISTICS or any(other != signal for other in signals):
        return None
    threshold, certain, uncertain = _suppression(policy, mode, signal, features)
    if not observed.isdisjoint(tools):
        certain = uncertain = None
    forced = policy.force.tool if may_force and policy.force is not None else None
    forces = forced in tools and forced not in observed
    if certain is not Action.SUPPRESS and uncertain is not Action.SUPPRESS and not forces:
        return None
    return GateNumbers(
        call_id=markers.call_open,
        call_close_id=-1 if markers.call_close is None else markers.call_close,
        think_open_id=-1 if markers.think_open is None else markers.think_open,
        think_close_id=-1 if markers.think_close is None else markers.think_close,
        statistic=STATISTICS.index(statistic),
        threshold=threshold,
        min_tokens=signal.min_tokens,
        suppress_certain=certain is Action.SUPPRESS,
        suppress_uncertain=uncertain is Action.SUPPRESS,
        force_above=policy.force.threshold if policy.force is not None and forces else math.inf,
        blank_ids=blank_ids,
        control_ids=markers.end,
    )


def _suppression(
    policy: Policy, mode: Mode, signal: Signal, features: Sequence[Features]
) -> tuple[float, Action | None, Action | None]:
    """The threshold, and what is done on its certain and on its uncertain side (None: differs)."""
    rules = [policy.rule(f.tool) for f in features]
    thresholds = {rule.threshold if rule is not None else None for rule in rules}
    if len(thresholds) != 1 or any(rule is None or rule.side_effects for rule in rules):
        return 0.0, None, None
    threshold = thresholds.pop() or 0.0
    lower = _outcome(policy, mode, features, _segment(threshold - 1.0, signal.min_tokens))
    upper = _outcome(policy, mode, features, _segment(threshold + 1.0, signal.min_tokens))
    if signal.statistic.certain_when_above:
        return threshold, upper, lower
    return threshold, lower, upper


def _outcome(
    policy: Policy, mode: Mode, features: Sequence[Features], segment: SegmentStats
) -> Action | None:
    """What is done about any call of any of the tools after ``segment``."""
    applied = {settled(policy, mode, replace(each, segment=segment)) for each in features}
    return applied.pop() if len(applied) == 1 else None


def _segment(value: float, n_tokens: int) -> SegmentStats:
    """A segment whose every statistic is ``value``."""
    interval = Interval(lower=value, upper=value)
    return SegmentStats(
        start=0,
        stop=n_tokens,
        n_tokens=n_tokens,
        estimator=Estimator.EXACT,
        mean=interval,
        max=interval,
        tail_mean=interval,
        last_window=interval,
        margin_mean=value,
        margin_min=value,
        p_tool_call=value,
        sum=interval,
        logprob_sum=value,
    )

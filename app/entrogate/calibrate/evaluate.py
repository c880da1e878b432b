"""`entrogate policy evaluate`: what a policy that never ran would have done, from a store.

Each model and version of the weights is a log of its own, and so is what was explored and what was
only observed: importance weights are for the first (`by_weights`), pairs for the second
(`by_shadows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from entrogate.calibrate.by_shadows import SHARES, Compared, Pair, Pairs, compare, share
from entrogate.calibrate.by_weights import (
    METRICS,
    Asked,
    Estimates,
    Policies,
    Support,
    Weighed,
    estimate,
    weigh,
)
from entrogate.calibrate.evaluated import Explored, Observed, OfModel, Options, Report
from entrogate.calibrate.left_out import LeftOut
from entrogate.gate.schema import Policy
from entrogate.label.shadows import RIGHT
from entrogate.risk.offpolicy import Estimate
from entrogate.store.read.logged import LoggedTrajectory
from entrogate.types import Action, Mode

MOST_UNSUPPORTED = 0.01  # of the decisions
SURELY_MISSING = 0.99  # confidence with which the mean weight is below 1: nothing is said then


@dataclass(slots=True, kw_only=True)
class _Logs:
    """The trajectories of one model and weights."""

    explored: list[LoggedTrajectory] = field(default_factory=list[LoggedTrajectory])
    observed: list[LoggedTrajectory] = field(default_factory=list[LoggedTrajectory])
    quiet: list[LoggedTrajectory] = field(default_factory=list[LoggedTrajectory])


def evaluate(
    trajectories: Iterable[LoggedTrajectory],
    policy: Policy,
    options: Options,
    policies: Policies,
) -> Report:
    """What ``policy`` would have done, by model. ``policies`` are those that logged."""
    report = Report(
        policy=policy.name,
        version=policy.version,
        mode=options.mode,
        confidence=options.confidence,
    )
    asked = Asked(policy=policy, mode=options.mode, policies=policies)
    logs: dict[tuple[str, str], _Logs] = {}
    for trajectory in trajectories:
        reason = _unusable(trajectory, options)
        if reason is None:
            reason = _sort_in(trajectory, logs)
        if reason is not None:
            report.left_out[reason] += 1
    for (model, weights), own in sorted(logs.items()):
        _share_out_quiet(own)
        explored = _explored(own.explored, asked, options) if own.explored else None
        observed, left_out = _observed(own.observed, policy, options)
        report.left_out.update(left_out)
        if explored is not None or observed is not None:
            report.models.append(
                OfModel(model=model, weights=weights, explored=explored, observed=observed)
            )
    return report


def _unusable(trajectory: LoggedTrajectory, options: Options) -> LeftOut | None:
    turns = trajectory.turns
    if trajectory.fault is None:
        origins = {(turn.model, turn.weight_version) for turn in turns}
        for wanted, place in ((options.model, 0), (options.weights, 1)):
            if wanted is not None and wanted not in {origin[place] for origin in origins}:
                return LeftOut.OTHER
        if len(origins) > 1:
            return LeftOut.MIXED_WEIGHTS
    if trajectory.fault is not None or not _readable(trajectory):
        return LeftOut.UNREADABLE
    broken = trajectory.incomplete_reason or ""
    if not turns or broken.startswith(("error", "parent_missing")):
        return LeftOut.BROKEN_OFF
    if len({score >= RIGHT for score in trajectory.scores}) > 1:
        return LeftOut.CONTRADICTORY
    return None


def _readable(trajectory: LoggedTrajectory) -> bool:
    try:
        return _in_range(trajectory)
    except TypeError:  # text where a number belongs
        return False


def _in_range(trajectory: LoggedTrajectory) -> bool:
    for turn in trajectory.turns:
        if not (math.isfinite(turn.duration_seconds) and turn.duration_seconds >= 0.0):
            return False
        if not all(0.0 < call.decision.propensity <= 1.0 + 1e-9 for call in turn.calls):
            return False
    return all(0.0 <= score <= 1.0 for score in trajectory.scores)


def _sort_in(trajectory: LoggedTrajectory, logs: dict[tuple[str, str], _Logs]) -> LeftOut | None:
    modes = {call.decision.mode for turn in trajectory.turns for call in turn.calls}
    if Mode.ENFORCE in modes:
        return LeftOut.MIXED_MODES if Mode.EXPLORE in modes else LeftOut.ENFORCED
    first = trajectory.turns[0]
    own = logs.setdefault((first.model, first.weight_version), _Logs())
    if Mode.EXPLORE in modes:
        own.explored.append(trajectory)
    elif modes:
        own.observed.append(trajectory)
    else:
        own.quiet.append(trajectory)
    return None


def _share_out_quiet(logs: _Logs) -> None:
    """A trajectory without a proposed call belongs to the mode of the one that began before it.

    Nothing else tells which mode it was. Left out, it would make every policy seem to call more.
    """
    marked = [(each.created_at, True, each) for each in logs.explored]
    marked += [(each.created_at, False, each) for each in logs.observed]
    if not marked:
        return
    marked.sort(key=lambda mark: mark[0])
    for each in sorted(logs.quiet, key=lambda quiet: quiet.created_at):
        earlier = [explored for began, explored, _ in marked if began <= each.created_at]
        explored = earlier[-1] if earlier else marked[0][1]
        (logs.explored if explored else logs.observed).append(each)


def _explored(trajectories: Sequence[LoggedTrajectory], asked: Asked, options: Options) -> Explored:
    weighed = weigh(trajectories, asked)
    refused = _refusal(trajectories, asked, weighed, options.least_effective)
    n_outcomes = int(weighed.known("outcome").sum())
    estimates: dict[str, Estimates] = {}
    if refused is None:
        for metric in METRICS:
            if not weighed.known(metric).any():
                continue
            try:
                estimates[metric] = estimate(weighed, metric, options.confidence)
            except ValueError as error:
                refused = f"{metric}: {error}"
                estimates = {}
                break
    return Explored(
        n=len(trajectories),
        n_outcomes=n_outcomes,
        effective=weighed.effective,
        mean_weight=weighed.mean_weight(options.confidence),
        support=weighed.support,
        estimates=estimates,
        refused=refused,
        warnings=(
            *_of_weights(weighed.mean_weight(options.confidence)),
            *_warnings(trajectories, weighed.support, n_outcomes),
        ),
    )


def _refusal(
    trajectories: Sequence[LoggedTrajectory], asked: Asked, weighed: Weighed, least: float
) -> str | None:
    n, support, effective = len(trajectories), weighed.support, weighed.effective
    if _forces(trajectories, asked):
        return (
            "the policy has another 'force' than the logging policy, and answers that were not "
            "turned into calls were not recorded: evaluate it with the same 'force'"
        )
    if support.unsupported > MOST_UNSUPPORTED * max(support.n, 1):
        return (
            f"in {support.unsupported} of {support.n} decisions the policy would do what the "
            "logging policy never did (suppress a repeat that it replays or lets through, gate a "
            "tool that it does not name, decide on fewer 'min_tokens'), so the log cannot tell "
            "the result. Explore under a policy that may do it (with 'on_repeat: allow' every "
            "call may be suppressed), or evaluate on observed trajectories with shadows"
        )
    if effective < least:
        more = "a policy closer to the logging one, or a larger epsilon, needs fewer"
        missing = math.ceil(n * least / effective) - n if effective else None
        wanted = "" if missing is None else f"about {missing} more trajectories are needed; "
        return (
            f"the effective sample size of {n} explored trajectories is {effective:.1f}; want at "
            f"least {least:g}: {wanted}{more}"
        )
    weight = weighed.mean_weight(SURELY_MISSING)
    if weight.upper < 1.0:
        return (
            f"the mean weight is {weight.value:.2f}, surely below 1 (at most {weight.upper:.2f}): "
            "trajectories that the policy would make are missing, such as long ones that the "
            "exploring policy nearly always cuts short. Explore more of them: a larger epsilon, or "
            "a policy closer to this one"
        )
    return None


def _of_weights(weight: Estimate) -> Iterable[str]:
    if weight.upper < 1.0:
        yield (
            f"the mean weight is {weight.value:.2f} where 1 is expected (at most "
            f"{weight.upper:.2f}): some trajectories that the policy would make are missing. The "
            "self-normalised estimate says nothing of these; trust it less than the others"
        )


def _forces(trajectories: Sequence[LoggedTrajectory], asked: Asked) -> bool:
    """Does the policy force other calls than those that logged?"""
    versions = {
        call.decision.policy_version
        for each in trajectories
        for turn in each.turns
        for call in turn.calls
    }
    known = [logging for version in versions if (logging := asked.policies(version)) is not None]
    if any(logging.force != asked.policy.force for logging in known):
        return True
    forced = any(
        call.decision.applied is Action.FORCE
        for each in trajectories
        for turn in each.turns
        for call in turn.calls
    )
    return forced and asked.policy.force is None


def _warnings(
    trajectories: Sequence[LoggedTrajectory], support: Support, n_outcomes: int
) -> Iterable[str]:
    n = len(trajectories)
    if n_outcomes < n:
        yield (
            f"{n - n_outcomes} of {n} trajectories have no outcome; they are assumed to be like"
            " the others"
        )
    yield from _of_outcomes(trajectories)
    if support.silent:
        yield (
            f"the policy's signal is unknown for {support.silent} of {support.n} decisions: "
            "for these it would let the call through"
        )
    if 0 < support.unsupported <= MOST_UNSUPPORTED * support.n:
        yield (
            f"in {support.unsupported} of {support.n} decisions the policy would do what the "
            "logging policy never did; they are treated as what the logging policy did"
        )
    if support.unclear:
        yield (
            f"{support.unclear} of {support.n} calls were masked before it was known whether "
            "they are repeats, which matters to the policy: they are treated as no repeats"
        )
    unrecorded = sum(turn.masked and not turn.calls for each in trajectories for turn in each.turns)
    if unrecorded:
        yield (
            f"{unrecorded} turns were masked without a record (by an older version, with a gap in "
            "the capture, or where no call would have been sampled): they are treated as not masked"
        )
    if support.unknown_policies:
        listed = ", ".join(sorted(support.unknown_policies))
        yield f"logging policies missing from the store, so their support is unknown: {listed}"


def _of_outcomes(trajectories: Sequence[LoggedTrajectory]) -> Iterable[str]:
    known = [each.scores[-1] for each in trajectories if each.scores]
    if not known:
        yield "no outcomes: send them to /v1/feedback to evaluate them as well"
    elif len({score >= RIGHT for score in known}) == 1:
        kind = "right" if known[0] >= RIGHT else "wrong"
        yield f"every known outcome is {kind}: effects on the other class cannot be estimated"


def _observed(
    trajectories: Sequence[LoggedTrajectory], policy: Policy, options: Options
) -> tuple[Observed | None, Counter[LeftOut]]:
    left_out: Counter[LeftOut] = Counter()
    pairs: list[Pair] = []
    under = Pairs(policy, options.mode)
    for trajectory in trajectories:
        found = under.pair(trajectory)
        if isinstance(found, LeftOut):
            left_out[found] += 1
        else:
            pairs.append(found)
    if not any(turn.shadow for each in trajectories for turn in each.turns):
        return None, left_out
    refused = None
    if len(pairs) < options.least_effective:
        refused = (
            f"{len(pairs)} observed trajectories have a shadow at each call that could be "
            f"suppressed; want at least {options.least_effective:g}: record more with "
            "--shadow-share"
        )
    compared: dict[str, Compared] = {}
    shares: dict[str, Estimate] = {}
    if refused is None:
        for metric in METRICS:
            metric_found = compare(pairs, metric, options.confidence)
            if metric_found is not None:
                compared[metric] = metric_found
        for name in SHARES:
            share_found = share(pairs, name, options.confidence)
            if share_found is not None:
                shares[name] = share_found
    n_outcomes = sum(each.lost is not None for each in pairs)
    warnings = list(_of_outcomes([each.trajectory for each in pairs]))
    if n_outcomes < len(pairs):
        warnings.append(
            f"{len(pairs) - n_outcomes} of {len(pairs)} trajectories have no outcome, or a shadow "
            "without a score: they count for calls, tokens and seconds only"
        )
    return (
        Observed(
            n=len(pairs),
            n_outcomes=n_outcomes,
            compared=compared,
            shares=shares,
            refused=refused,
            warnings=tuple(warnings),
        ),
        left_out,
    )

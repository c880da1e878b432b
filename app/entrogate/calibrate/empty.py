"""Why a store has nothing to calibrate on: the main reason, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from entrogate.calibrate.rules import gated_tools
from entrogate.calibrate.samples import LeftOut, Log, Picked
from entrogate.gate.schema import Policy

_REASONS = {
    LeftOut.NO_OUTCOME: "have no outcome: report one with POST /v1/feedback",
    LeftOut.CONTRADICTORY: "have feedback that calls them right and wrong",
    LeftOut.INCOMPLETE: "were not recorded completely",
    LeftOut.MIXED_WEIGHTS: "were answered by several models or weights",
    LeftOut.MIXED_ESTIMATORS: "have entropies that were not all measured alike",
    LeftOut.NOT_OBSERVED: "were not recorded in mode observe",
    LeftOut.CAPTURE_GAP: "have a turn with calls that lacks tokens",
    LeftOut.BAD_FEATURES: "have features that cannot be read",
    LeftOut.SHADOW_MISSING: "have a call without a shadow: serve with --shadow-share",
    LeftOut.SHADOW_UNJUDGED: "have a shadow without a score: give gold answers or a grader",
}
_MOST_NAMED = 10


def main_reason(log: Log, base: Policy, picked: Picked, filters: Sequence[str]) -> str:
    """What most of the trajectories lack, in one line; ``filters`` are the options that chose
    which trajectories to read."""
    if not log.left_out:
        chosen = f" matches {' and '.join(filters)}" if filters else " is stored"
        return f"no trajectory with a tool call{chosen}"
    reason, count = log.left_out.most_common(1)[0]
    if reason is LeftOut.OTHER_MODEL:
        return _nothing_picked(log, picked)
    if reason is LeftOut.NOT_GATED:
        return _not_gated(log, base)
    return f"{count} of {log.left_out.total()} trajectories with calls {_REASONS[reason]}"


def _nothing_picked(log: Log, picked: Picked) -> str:
    named = {
        name: value
        for name in ("model", "weights", "tokenizer", "estimator")
        if (value := getattr(picked, name)) is not None
    }
    options = " ".join(f"--{name} {value}" for name, value in named.items())
    if len(named) == 1:
        name = next(iter(named))
        there = sorted({str(getattr(origin, name)) or "(unknown)" for origin in log.others})
        return f"nothing matches {options}; there are: {_listed(there)}"
    return f"nothing matches {options}; there are: " + "; ".join(map(str, sorted(log.others)))


def _not_gated(log: Log, base: Policy) -> str:
    called = sorted(log.ungated)
    if not set(called) & set(base.tools):
        return (
            f"the base policy {base.name!r} names none of the tools called ({_listed(called)}):"
            " give one that does with --base-policy"
        )
    if not set(called) & set(gated_tools(base)):
        return (
            f"the base policy {base.name!r} gates none of the tools called ({_listed(called)}):"
            " they have side effects or the threshold null"
        )
    return f"the base policy {base.name!r} can suppress none of the calls ({_listed(called)})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

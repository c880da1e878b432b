"""What the arguments of a call could still change about the decision on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from entrogate.gate.decide import decide_turn
from entrogate.gate.schema import Policy
from entrogate.types import Action, Features, Mode

_MANY = 10**6  # rounds of a circle, or errors: more than any policy waits for


def forms(policy: Policy, features: Features) -> Iterator[Features]:
    """A call of which only the tool is known, and what it may turn out to be for ``policy``.

    ``features`` are those of a call that repeats nothing. Where the tool was called before it may
    repeat one of those calls, whose result may be there, outdated, an error or missing, or go in a
    circle.
    """
    yield features
    if features.tool_calls_before == 0:
        return
    repeat = replace(features, repeats=1, near_repeats=1)
    yield repeat
    answered = replace(repeat, replayable=True, result_age_seconds=0.0)
    yield answered
    yield replace(features, near_repeats=1, replayable=True, result_age_seconds=0.0)
    rule = policy.rule(features.tool)
    if rule is not None and rule.invalidated_by:
        yield replace(answered, called_since=tuple(rule.invalidated_by))
    yield replace(answered, result_failed=True, failures=_MANY)
    yield replace(repeat, circle_rounds=_MANY)


def settled(policy: Policy, mode: Mode, features: Features) -> Action | None:
    """What is done about a call whatever its arguments are; None where they decide.

    In mode explore they often do: the alternative to letting a call through is to suppress it, that
    to replaying a repeat is to let it through.
    """
    applied = {decide_turn(policy, mode, [form])[0].applied for form in forms(policy, features)}
    return applied.pop() if len(applied) == 1 else None

"""The decision on one turn's calls: rules, mode and the probability of what is done.

The calls of a turn stand or fall together, because the server can only resume the turn before all
of them: they are suppressed if the rules suppress every one, replayed if they replay every one, and
else all go through. So a turn has one outcome, and each of its calls the same `applied` and
propensity.

Randomness comes from the first call's ``draw`` alone, through independent numbers made from it by a
hash: one for the statistic `uniform`, one for mode `explore`, one for the audit. The propensity is
exact: the outcome is a step function of the first number, with steps at the thresholds, and is
summed over its steps.

The audit: in mode `enforce` a turn that the signal suppresses goes through with probability
``audit.share``, its decision otherwise unchanged, so that its outcome says whether the calls were
needed.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from entrogate.gate.draws import unit_draw
from entrogate.gate.reasons import AUDITED, FAIL_OPEN, UNTOUCHABLE, Reason
from entrogate.gate.rules import propose
from entrogate.gate.schema import Policy, Statistic
from entrogate.types import Action, Decision, Features, Mode


def decide_turn(policy: Policy, mode: Mode, features: Sequence[Features]) -> tuple[Decision, ...]:
    """One decision for each call of a turn, in order.

    A pure function: the same policy, mode and features give the same decisions, so that stored ones
    can be replayed. ``mode`` is the one in force, which may differ from the policy's own.
    """
    if not features:
        return ()
    turn = _outcome(policy, features, sub_draw(features[0].draw, "uniform"))
    applied = _applied(policy, mode, turn, features[0].draw)
    propensity = probabilities(policy, mode, features).get(applied, 0.0)
    return tuple(
        Decision(
            action=turn.action,
            applied=applied,
            reason=reason,
            propensity=propensity,
            mode=mode,
            policy_name=policy.name,
            policy_version=policy.version,
        )
        for reason in turn.reasons
    )


def probabilities(policy: Policy, mode: Mode, features: Sequence[Features]) -> dict[Action, float]:
    """What may be done with the calls of a turn, and how probable each is over the draw.

    The draw among ``features`` counts for nothing. Probabilities of 0 are left out.
    """
    if mode is Mode.OBSERVE:
        return {Action.ALLOW: 1.0}
    found: dict[Action, float] = {}
    for low, high in itertools.pairwise(_steps(policy, features)):
        turn = _outcome(policy, features, low)
        flipped = _flip_probability(policy, mode, turn)
        for action, share in ((turn.action, 1.0 - flipped), (turn.alternative, flipped)):
            if action is not None and share > 0.0:
                found[action] = found.get(action, 0.0) + (high - low) * share
    return found


def sub_draw(draw: float, label: str) -> float:
    """A number in [0, 1) made from ``draw`` and ``label``; independent for different labels."""
    return unit_draw(struct.pack("<d", draw) + label.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What the rules say of a turn.

    ``alternative`` is what exploring would do, if it may. ``auditable``: the turn is suppressed,
    all its calls because of the signal.
    """

    action: Action
    alternative: Action | None
    reasons: tuple[Reason, ...]  # one per call
    auditable: bool = False


def _outcome(policy: Policy, features: Sequence[Features], uniform: float) -> _Outcome:
    proposals = [propose(policy, f, uniform) for f in features]
    reasons = tuple(p.reason for p in proposals)
    explorable = not any(r in UNTOUCHABLE | FAIL_OPEN for r in reasons)
    if len({p.action for p in proposals}) > 1:
        action, reasons = Action.ALLOW, (Reason.MIXED_TURN,) * len(reasons)
    else:
        action = proposals[0].action
    if action in (Action.SUPPRESS, Action.REPLAY):
        return _Outcome(
            action=action,
            alternative=Action.ALLOW,
            reasons=reasons,
            auditable=action is Action.SUPPRESS and AUDITED.issuperset(reasons),
        )
    alternative = Action.SUPPRESS if explorable and action is Action.ALLOW else None
    return _Outcome(action=action, alternative=alternative, reasons=reasons)


def _applied(policy: Policy, mode: Mode, turn: _Outcome, draw: float) -> Action:
    if mode is Mode.OBSERVE:
        return Action.ALLOW
    label = "explore" if mode is Mode.EXPLORE else "audit"
    flips = sub_draw(draw, label) < _flip_probability(policy, mode, turn)
    return turn.alternative if flips and turn.alternative is not None else turn.action


def _flip_probability(policy: Policy, mode: Mode, turn: _Outcome) -> float:
    """With which probability the alternative is applied, where ``mode`` may change something."""
    if turn.alternative is None:
        return 0.0
    if mode is Mode.EXPLORE:
        return policy.explore.epsilon
    return policy.audit.share if policy.audit is not None and turn.auditable else 0.0


def _steps(policy: Policy, features: Sequence[Features]) -> list[float]:
    """Where the outcome may change as the number behind `uniform` goes from 0 to 1."""
    tools = {f.tool for f in features if policy.signal_for(f.tool).statistic is Statistic.UNIFORM}
    rules = [policy.rule(tool) for tool in tools]
    inner = {r.threshold for r in rules if r is not None and r.threshold is not None}
    return sorted({0.0, 1.0} | {t for t in inner if 0.0 < t < 1.0})

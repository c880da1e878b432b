"""What another policy would have done to observed trajectories whose calls have shadows.

Under the policy the first call that it suppresses ends a trajectory with that turn's shadow; a call
that it replays costs the client nothing and changes nothing. So each trajectory has both outcomes,
and what differs between them is estimated in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from entrogate.calibrate.by_weights import BOUNDS, COSTS, MADE, calls_made, clusters_of
from entrogate.calibrate.left_out import LeftOut
from entrogate.calibrate.rules import loosest
from entrogate.entropy.statistics import draft_stats
from entrogate.gate.decide import probabilities
from entrogate.gate.rules import REPLAYS_PER_TURN
from entrogate.gate.schema import Policy
from entrogate.label.shadows import RIGHT
from entrogate.risk.offpolicy import Estimate, mean_estimate
from entrogate.store.read.logged import LoggedTrajectory, LoggedTurn
from entrogate.types import Action, Features, Mode

SHARES = ("lost", "gained", "called_again")
"""Right as observed and wrong under the policy; the reverse; ended by a shadow that calls again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A trajectory as observed and as it is expected to be under the policy.

    ``outcome`` and the shares are None where the outcome, or the score of a shadow, is not known.
    """

    trajectory: LoggedTrajectory
    observed: dict[str, float]
    expected: dict[str, float]
    lost: float | None
    gained: float | None
    called_again: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric over all pairs of which it is known."""

    observed: Estimate
    policy: Estimate
    difference: Estimate


class Pairs:
    """Trajectories in pairs under one policy.

    Which trajectories count must not depend on what the policy does in them: with shadows of a
    share of the traffic, those that it leaves alone would otherwise all count, and of those that it
    ends only that share. So a trajectory needs a shadow, and for its outcome a score, at every turn
    that any threshold could suppress.
    """

    def __init__(self, policy: Policy, mode: Mode) -> None:
        self._policy, self._mode = policy, mode
        self._loosest = loosest(policy)

    def pair(self, trajectory: LoggedTrajectory) -> Pair | LeftOut:
        """The two outcomes of a trajectory, or why it does not count."""
        turns = [turn for turn in trajectory.turns if self._suppressible(turn)]
        if not any(turn.calls for turn in trajectory.turns):
            return LeftOut.NO_CALLS
        if not turns:
            return LeftOut.NOT_GATED
        beside = [turn.shadow for turn in turns if turn.shadow is not None]
        if len(beside) < len(turns):
            return LeftOut.NO_SHADOW
        judged = all(shadow.called or shadow.score is not None for shadow in beside)
        return _follow(trajectory, self._policy, self._mode, judged=judged)

    def _suppressible(self, turn: LoggedTurn) -> bool:
        return any(
            _chances(turn, self._loosest, Mode.ENFORCE, replays).get(Action.SUPPRESS, 0.0) > 0.0
            for replays in (0, REPLAYS_PER_TURN)
        )


def _follow(trajectory: LoggedTrajectory, policy: Policy, mode: Mode, *, judged: bool) -> Pair:
    observed: dict[str, float] = dict.fromkeys(COSTS, 0.0)
    expected = dict(observed)
    going, replays, ended = 1.0, 0, _Ended()
    for turn in trajectory.turns:
        whole = {
            "calls": float(calls_made(turn)),
            "tokens": float(turn.n_tokens),
            "seconds": turn.duration_seconds,
        }
        for name in COSTS:
            observed[name] += whole[name]
        chances = _chances(turn, policy, mode, replays)
        replays = replays + 1 if chances.get(Action.REPLAY, 0.0) > 0.5 else 0
        stopped = going * chances.get(Action.SUPPRESS, 0.0)
        if stopped > 0.0:
            ended.add(stopped, turn, expected)
        made = sum(chance for action, chance in chances.items() if action in MADE)
        expected["calls"] += going * made * whole["calls"]
        going -= stopped
        expected["tokens"] += going * whole["tokens"]
        expected["seconds"] += going * whole["seconds"]
    return _pair(trajectory, observed, expected, going, ended, judged=judged)


@dataclass(slots=True)
class _Ended:
    """What became of the share of a trajectory that the policy ended."""

    right: float = 0.0
    scores: float = 0.0
    called_again: float = 0.0

    def add(self, share: float, turn: LoggedTurn, expected: dict[str, float]) -> None:
        """A ``share`` of the trajectory ends with the shadow of ``turn``."""
        shadow = turn.shadow
        assert shadow is not None
        if shadow.called:
            self.called_again += share  # and that is wrong
        elif shadow.score is not None:
            self.scores += share * shadow.score
            self.right += share * float(shadow.score >= RIGHT)
        before = shadow.n_kept / turn.n_tokens if turn.n_tokens else 1.0
        expected["tokens"] += share * (shadow.n_kept + shadow.n_tokens)
        expected["seconds"] += share * (before * turn.duration_seconds + shadow.duration_seconds)


def _pair(
    trajectory: LoggedTrajectory,
    observed: dict[str, float],
    expected: dict[str, float],
    going: float,
    ended: _Ended,
    *,
    judged: bool,
) -> Pair:
    lost = gained = None
    if trajectory.scores and judged:
        outcome = trajectory.scores[-1]
        observed["outcome"] = outcome
        expected["outcome"] = going * outcome + ended.scores
        right = outcome >= RIGHT
        lost = max(0.0, 1.0 - going - ended.right) if right else 0.0
        gained = 0.0 if right else ended.right
    return Pair(
        trajectory=trajectory,
        observed=observed,
        expected=expected,
        lost=lost,
        gained=gained,
        called_again=ended.called_again,
    )


def _chances(turn: LoggedTurn, policy: Policy, mode: Mode, replays: int) -> dict[Action, float]:
    if not turn.calls:
        return {Action.ALLOW: 1.0}
    features = [_as_it_would_be(call.features, turn, policy, replays) for call in turn.calls]
    return probabilities(policy, mode, features)


def _as_it_would_be(features: Features, turn: LoggedTurn, policy: Policy, replays: int) -> Features:
    """The features with the draft that the policy asks for, and after so many replays."""
    signal, shadow = policy.signal_for(features.tool), turn.shadow
    draft = features.draft
    if signal.needs_draft and shadow is not None and shadow.capture is not None:
        draft = draft_stats(shadow.capture, signal.draft_tokens, ended=shadow.ended)
    return replace(features, draft=draft, replays_in_turn=replays)


def compare(pairs: Sequence[Pair], metric: str, confidence: float) -> Compared | None:
    """One metric as observed, under the policy, and the difference; None where it is not known."""
    known = [each for each in pairs if metric in each.expected]
    if not known:
        return None
    observed = np.array([each.observed[metric] for each in known])
    expected = np.array([each.expected[metric] for each in known])
    clusters = clusters_of([each.trajectory for each in known])
    least, most = BOUNDS[metric]
    either = (least - most, most - least)  # of a difference
    return Compared(
        observed=mean_estimate(observed, clusters, bounds=BOUNDS[metric], confidence=confidence),
        policy=mean_estimate(expected, clusters, bounds=BOUNDS[metric], confidence=confidence),
        difference=mean_estimate(
            expected - observed, clusters, bounds=either, confidence=confidence
        ),
    )


def share(pairs: Sequence[Pair], name: str, confidence: float) -> Estimate | None:
    """One of `SHARES` of the trajectories; None where it is known of none."""
    known = [each for each in pairs if getattr(each, name) is not None]
    if not known:
        return None
    values = np.array([getattr(each, name) for each in known], dtype=np.float64)
    clusters = clusters_of([each.trajectory for each in known])
    return mean_estimate(values, clusters, bounds=(0.0, 1.0), confidence=confidence)

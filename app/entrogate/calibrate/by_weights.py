"""What another policy would have done, from an explored log: importance weights of its decisions.

At each decision the stored propensity says how probable the logged action was; the policy at hand
says over the same features how probable it would have made it (decision 0025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from entrogate.calibrate.paired import unit_of
from entrogate.gate.decide import decide_turn, probabilities
from entrogate.gate.reasons import FAIL_OPEN, Reason
from entrogate.gate.schema import Policy
from entrogate.gate.unseen import forms
from entrogate.gate.vector import named_values
from entrogate.risk.offpolicy import (
    Estimate,
    Log,
    doubly_robust,
    effective_size,
    fit,
    mean_estimate,
    per_decision,
    self_normalised,
)
from entrogate.store.read.logged import LoggedTrajectory, LoggedTurn
from entrogate.turn.judge import UNSAMPLED
from entrogate.types import Action, Features, Mode

COSTS = ("calls", "tokens", "seconds")
METRICS = (*COSTS, "outcome")
BOUNDS = dict.fromkeys(COSTS, (0.0, math.inf)) | {"outcome": (0.0, 1.0)}
MADE = frozenset({Action.ALLOW, Action.FORCE})
"""What leads to a call that the client makes."""

_ACTIONS = (Action.ALLOW, Action.SUPPRESS, Action.REPLAY)
_STATE = (
    "entropy_mean",
    "entropy_max",
    "margin_min",
    "p_tool_call",
    "calls_before",
    "repeats",
)
_UNBOUNDED = 50.0  # nats: stands for an entropy without an upper bound

Policies = Callable[[str], Policy | None]
"""The stored policy of a version; None where it was never stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The target policy, the mode in which it would run, and the logging policies by version."""

    policy: Policy
    mode: Mode
    policies: Policies

    def probabilities(self, features: Sequence[Features]) -> dict[Action, float]:
        """What the target policy would do with the calls of a turn."""
        return probabilities(self.policy, self.mode, features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decision: weights as in `risk.offpolicy.Log`, what was known, what was done."""

    ratio: float
    tilted: float
    presence: float
    state: tuple[float, ...]
    taken: tuple[float, ...]
    target: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class Support:
    """Counts, among ``n`` decisions, of those about which the log says little or nothing."""

    n: int = 0
    unsupported: int = 0  # the policy would do what the logging one never does there
    unclear: int = 0  # what it does depends on arguments that were never sampled
    silent: int = 0  # its signal is unknown there: it lets calls through
    unknown_policies: set[str] = field(default_factory=set[str])  # versions that are not stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """An explored log with importance weights for one policy; arrays as in `risk.offpolicy`."""

    log: Log
    rewards: dict[str, NDArray[np.float64]]  # (n, T + 1) by metric; nan: no outcome is known
    states: NDArray[np.float64]
    taken: NDArray[np.float64]
    target: NDArray[np.float64]
    support: Support

    @property
    def effective(self) -> float:
        """The effective sample size."""
        return effective_size(self.log.weights)

    def mean_weight(self, confidence: float) -> Estimate:
        """The mean weight of a trajectory. It is 1 in expectation, whatever the policy."""
        return mean_estimate(self.log.weights, self.log.clusters, confidence=confidence)

    def known(self, metric: str) -> NDArray[np.bool_]:
        """Of which trajectories the metric is known."""
        return np.isfinite(self.rewards[metric].sum(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """One metric as it was logged, and under the policy by each estimator."""

    logged: Estimate
    doubly_robust: Estimate
    self_normalised: Estimate
    per_decision: Estimate


def weigh(trajectories: Sequence[LoggedTrajectory], asked: Asked) -> Weighed:
    """Weight every decision. Raises ValueError for a propensity outside (0, 1]."""
    support = Support()
    steps: list[list[Step]] = []
    earned: list[dict[str, list[float]]] = []
    for trajectory in trajectories:
        taken, costs = _walk(trajectory, asked, support)
        steps.append(taken)
        earned.append(costs)
    horizon = max(map(len, steps), default=0)
    shape = (len(steps), horizon)
    rows = [[*own, *[_PAST_THE_END] * (horizon - len(own))] for own in steps]

    def column(name: str, *more: int) -> NDArray[np.float64]:
        values = [[getattr(step, name) for step in row] for row in rows]
        return np.array(values, dtype=np.float64).reshape((*shape, *more))

    rewards = {name: _padded([each[name] for each in earned], horizon) for name in COSTS}
    rewards["outcome"] = _outcomes(trajectories, horizon)
    log = Log(
        ratios=column("ratio"),
        tilted=column("tilted"),
        presence=column("presence"),
        clusters=clusters_of(trajectories),
    )
    return Weighed(
        log=log,
        rewards=rewards,
        states=column("state", 2 * len(_STATE)),
        taken=column("taken", len(_ACTIONS)),
        target=column("target", len(_ACTIONS)),
        support=support,
    )


def estimate(weighed: Weighed, metric: str, confidence: float) -> Estimates:
    """One metric by every estimator. ValueError where a step has no weight left."""
    known = weighed.known(metric)
    log = Log(
        ratios=weighed.log.ratios[known],
        tilted=weighed.log.tilted[known],
        presence=weighed.log.presence[known],
        clusters=weighed.log.clusters[known],
    )
    rewards, bounds = weighed.rewards[metric][known], BOUNDS[metric]
    states, taken, target = (
        array[known] for array in (weighed.states, weighed.taken, weighed.target)
    )
    q, v = fit(log, rewards, states, taken, target)
    return Estimates(
        logged=mean_estimate(
            rewards.sum(axis=1), log.clusters, bounds=bounds, confidence=confidence
        ),
        doubly_robust=doubly_robust(log, rewards, q, v, bounds=bounds, confidence=confidence),
        self_normalised=self_normalised(log, rewards, bounds=bounds, confidence=confidence),
        per_decision=per_decision(log, rewards, bounds=bounds, confidence=confidence),
    )


def _walk(
    trajectory: LoggedTrajectory, asked: Asked, support: Support
) -> tuple[list[Step], dict[str, list[float]]]:
    """The decisions of a trajectory, and what was earned before the first and after each."""
    steps: list[Step] = []
    rewards: dict[str, list[float]] = {name: [0.0] for name in COSTS}
    drawn: set[tuple[str, float]] = set()
    for turn in trajectory.turns:
        if turn.calls and turn.calls[0].decision.reason != Reason.GATE_FAULT:
            draw = (turn.request_id, turn.calls[0].features.draw)
            again = draw in drawn  # an older gateway used one draw for a replay and what followed
            drawn.add(draw)
            steps.append(_step(turn, asked, support, known=again))
            for amounts in rewards.values():
                amounts.append(0.0)
        rewards["calls"][-1] += calls_made(turn)
        rewards["tokens"][-1] += turn.n_tokens
        rewards["seconds"][-1] += turn.duration_seconds
    return steps, rewards


def calls_made(turn: LoggedTurn) -> int:
    """Calls of a turn that went to the client."""
    return sum(call.decision.applied in MADE for call in turn.calls)


def _step(turn: LoggedTurn, asked: Asked, support: Support, *, known: bool) -> Step:
    """The decision on the calls of ``turn``; ``known``: chance had decided before."""
    features = [call.features for call in turn.calls]
    decision = turn.calls[0].decision
    propensity = 1.0 if known else decision.propensity
    if not 0.0 < propensity <= 1.0:
        raise ValueError(f"a propensity is {propensity}; want above 0, at most 1")
    target = asked.probabilities(features)
    ratio = target.get(decision.applied, 0.0) / propensity
    presence = p_sampled(turn)
    _note_support(support, turn, asked, set(target))
    return Step(
        ratio=1.0 - presence + presence * ratio,
        tilted=presence * ratio,
        presence=presence,
        state=_state(features[0]),
        taken=tuple(float(action is decision.applied) for action in _ACTIONS),
        target=tuple(target.get(action, 0.0) for action in _ACTIONS),
    )


def p_sampled(turn: LoggedTurn) -> float:
    """Probability that the calls of a turn were sampled: below 1 only where they were masked."""
    call = turn.calls[0]
    if call.features.p_sampled is not None:
        return min(max(call.features.p_sampled, 0.0), 1.0)
    segment = call.features.segment
    if call.name == UNSAMPLED and segment is not None and segment.p_tool_call is not None:
        return segment.p_tool_call  # written before `p_sampled` was kept: of the raw distribution
    return 1.0


def _note_support(support: Support, turn: LoggedTurn, asked: Asked, wanted: set[Action]) -> None:
    features = [call.features for call in turn.calls]
    decision = turn.calls[0].decision
    support.n += 1
    reasons = {each.reason for each in decide_turn(asked.policy, asked.mode, features)}
    support.silent += bool(reasons & FAIL_OPEN) and decision.reason not in FAIL_OPEN
    logging = asked.policies(decision.policy_version)
    if logging is None:
        support.unknown_policies.add(decision.policy_version)
    else:
        possible = set(probabilities(logging, decision.mode, features))
        support.unsupported += not wanted <= possible
    if turn.calls[0].name == UNSAMPLED:
        suppressed = {
            asked.probabilities([form]).get(Action.SUPPRESS, 0.0)
            for form in forms(asked.policy, features[0])
        }
        support.unclear += len(suppressed) > 1


def _state(features: Features) -> tuple[float, ...]:
    """Inputs of the reward model: the values, then a flag for each that is unknown."""
    values = named_values(features)
    known = [values.get(name) for name in _STATE]
    bounded = [0.0 if x is None else min(max(x, -_UNBOUNDED), _UNBOUNDED) for x in known]
    return (*bounded, *(float(x is None) for x in known))


def clusters_of(trajectories: Sequence[LoggedTrajectory]) -> NDArray[np.int64]:
    """The number of each trajectory's task: runs of one task are not independent."""
    names = [unit_of(each.trajectory_id, each.task_id) for each in trajectories]
    return np.unique(np.array(names), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _padded(rows: Sequence[Sequence[float]], horizon: int) -> NDArray[np.float64]:
    padded = np.zeros((len(rows), horizon + 1))
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _outcomes(trajectories: Sequence[LoggedTrajectory], horizon: int) -> NDArray[np.float64]:
    """The outcome is earned after the last decision of all, whenever a trajectory ended."""
    rewards = np.zeros((len(trajectories), horizon + 1))
    rewards[:, -1] = [each.scores[-1] if each.scores else math.nan for each in trajectories]
    return rewards


_PAST_THE_END = Step(
    ratio=1.0,
    tilted=0.0,
    presence=0.0,
    state=(0.0,) * (2 * len(_STATE)),
    taken=(0.0,) * len(_ACTIONS),
    target=(0.0,) * len(_ACTIONS),
)

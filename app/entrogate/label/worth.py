"""What the trajectories of one task are worth against each other, under each reward.

Sources: those of `credit` and `rewards`; the calibration is ours (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from entrogate.label.credit import (
    Baseline,
    group_advantages,
    otc_rewards,
    turn_advantages,
    with_bonus,
)
from entrogate.label.rewards import RewardOptions, dense_rewards, sparse_reward

RewardName = Literal["outcome", "otc", "sparse", "dense"]
DenseName = Literal["paper", "calibrated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """Which reward, and how it becomes an advantage.

    ``dense``: ``paper`` compares r_k = outcome (1 + α I_k) with call k of the other trajectories;
    ``calibrated`` adds the advantage of the bonus α · outcome · I_k to the advantage of the
    outcome, and never lets it turn the sign. ``baseline`` None keeps the rewards as they are.
    """

    reward: RewardName = "dense"
    baseline: Baseline | None = "leave_one_out"
    options: RewardOptions = field(default_factory=RewardOptions)
    dense: DenseName = "calibrated"


@dataclass(slots=True)
class Judged:
    """A trajectory with an outcome; ``labels``: I_k of its groups of calls, by turn index."""

    group_id: str
    outcome: float
    labels: dict[int, bool | None] = field(default_factory=dict[int, "bool | None"])

    @property
    def ordered_labels(self) -> list[bool | None]:
        """I_k in the order of the turns; None where it is unknown."""
        return [self.labels[turn] for turn in sorted(self.labels)]

    def sparse(self, options: RewardOptions) -> float | None:
        """The sparse reward."""
        return sparse_reward(self.outcome, self.ordered_labels, options)

    def dense(self, options: RewardOptions) -> list[float | None]:
        """The dense reward of each group of calls, in the order of their turns."""
        return list(dense_rewards(self.outcome, self.ordered_labels, options))


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Advantages of one trajectory: of turns that made calls, by turn index, and of the rest."""

    rest: float
    by_turn: dict[int, float] = field(default_factory=dict[int, float])


def group_worth(group: Sequence[Judged], labelling: Labelling) -> list[Worth] | None:
    """The advantages of a group's trajectories; None when it teaches nothing."""
    outcomes = [trajectory.outcome for trajectory in group]
    match labelling.reward:
        case "outcome":
            rewards: list[float | None] = list(outcomes)
        case "otc":
            rewards = list(otc_rewards(outcomes, [len(t.labels) for t in group]))
        case "sparse":
            rewards = [trajectory.sparse(labelling.options) for trajectory in group]
        case "dense":
            return _dense_worth(group, labelling)
    advantages = _advantages(rewards, labelling)
    if all(advantage is None for advantage in advantages):
        return None
    return [Worth(rest=advantage or 0.0) for advantage in advantages]


def _dense_worth(group: Sequence[Judged], labelling: Labelling) -> list[Worth] | None:
    outcomes = [trajectory.outcome for trajectory in group]
    of_outcome = [advantage or 0.0 for advantage in _advantages(list(outcomes), labelling)]
    dense = [trajectory.dense(labelling.options) for trajectory in group]
    if labelling.baseline is None:
        of_calls: list[list[float | None]] = dense
    elif labelling.dense == "paper":
        of_calls = turn_advantages(dense, labelling.baseline)
    else:
        bonus = [
            [None if r is None else r - outcome for r in own]
            for own, outcome in zip(dense, outcomes, strict=True)
        ]
        of_calls = [
            [None if b is None else with_bonus(advantage, b) for b in own]
            for own, advantage in zip(
                turn_advantages(bonus, labelling.baseline), of_outcome, strict=True
            )
        ]
    worth = [
        Worth(
            rest=rest,
            by_turn={
                turn: rest if advantage is None else advantage
                for turn, advantage in zip(sorted(trajectory.labels), own, strict=True)
            },
        )
        for trajectory, rest, own in zip(group, of_outcome, of_calls, strict=True)
    ]
    some = any(w.rest or any(w.by_turn.values()) for w in worth)
    return worth if some else None


def _advantages(rewards: list[float | None], labelling: Labelling) -> list[float | None]:
    if labelling.baseline is None:
        return rewards
    return group_advantages(rewards, labelling.baseline)

"""Entropy change of a call, and the rewards of a trajectory, by arXiv 2602.02050."""

from entrogate.label.change import entropy_change
from entrogate.label.f1 import squad_f1
from entrogate.label.rewards import (
    RewardOptions,
    TrajectoryRewards,
    dense_rewards,
    sparse_reward,
    trajectory_rewards,
)

__all__ = [
    "RewardOptions",
    "TrajectoryRewards",
    "dense_rewards",
    "entropy_change",
    "sparse_reward",
    "squad_f1",
    "trajectory_rewards",
]

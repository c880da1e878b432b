"""The sparse and the dense reward of a trajectory, by arXiv 2602.02050.

With outcome F1(x, y), n groups of calls, m of them with I_k = 1: sparse r = F1 · m/n, for the whole
trajectory; dense r_k = F1 · (1 + α·I_k), for each group. What the paper leaves open is an option.

A label is I_k of one group of calls: True (entropy fell), False, or None (unknown). Parallel calls
are one group, so they count once; unknown ones leave both m and n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from entrogate.types import EntropyChange

Rule = Literal["outcome", "zero", "null"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """What the paper leaves open.

    ``no_calls``: the sparse reward of a trajectory without calls: the outcome itself (m/n taken as
    1), zero, or null. ``all_unknown``: the same where there were calls, but no label is known.
    ``alpha``: weight of I_k in the dense reward; 0.5 is a common reading, not the paper's word.
    ``min_reduction``: nats by which a call has to lower the entropy for I_k = 1. The paper's is 0;
    a call that tells the model nothing has a ΔH that scatters around 0, so half of such calls
    count as good there (docs/results.md).
    """

    alpha: float = 0.5
    min_reduction: float = 0.0
    no_calls: Rule = "outcome"
    all_unknown: Rule = "null"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; want 0 or more")
        if not self.min_reduction >= 0:
            raise ValueError(f"min_reduction is {self.min_reduction} nats; want 0 or more")

    def label(self, reduced: bool | None, delta: float | None) -> bool | None:
        """I_k of a call that brought the change ``delta`` (nats; the middle of its interval)."""
        if not reduced or not self.min_reduction:
            return reduced
        return delta is not None and delta <= -self.min_reduction


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRewards:
    """``n_reduced`` is the paper's m, ``n_labelled`` its n; ``dense`` is parallel to the groups."""

    outcome: float
    n_groups: int
    n_labelled: int
    n_reduced: int
    sparse: float | None
    dense: tuple[float | None, ...]


def trajectory_rewards(
    outcome: float,
    changes: Sequence[EntropyChange | None],
    options: RewardOptions | None = None,
) -> TrajectoryRewards:
    """Both rewards from the outcome in [0, 1] and the change of each group of calls, in order.

    Entries whose null reason is ``no_call`` are no group and are left out; None (a call that no
    later turn followed) is a group with an unknown label. Raises ValueError on an outcome outside
    [0, 1].
    """
    options = options or RewardOptions()
    groups = [c for c in changes if c is None or c.null_reason != "no_call"]
    labels = [
        None if c is None else options.label(c.reduced, c.delta and c.delta.midpoint)
        for c in groups
    ]
    return TrajectoryRewards(
        outcome=outcome,
        n_groups=len(labels),
        n_labelled=sum(label is not None for label in labels),
        n_reduced=sum(label is True for label in labels),
        sparse=sparse_reward(outcome, labels, options),
        dense=dense_rewards(outcome, labels, options),
    )


def sparse_reward(
    outcome: float, labels: Sequence[bool | None], options: RewardOptions | None = None
) -> float | None:
    """outcome * m / n; where n = 0, what ``options`` say."""
    options = options or RewardOptions()
    _check(outcome)
    known = [label for label in labels if label is not None]
    if known:
        return outcome * sum(known) / len(known)
    rule = options.all_unknown if labels else options.no_calls
    return {"outcome": outcome, "zero": 0.0, "null": None}[rule]


def dense_rewards(
    outcome: float, labels: Sequence[bool | None], options: RewardOptions | None = None
) -> tuple[float | None, ...]:
    """outcome * (1 + alpha * I_k) for each group; None where I_k is unknown."""
    options = options or RewardOptions()
    _check(outcome)
    return tuple(
        None if label is None else outcome * (1 + options.alpha * label) for label in labels
    )


def _check(outcome: float) -> None:
    if not 0.0 <= outcome <= 1.0:
        raise ValueError(f"outcome is {outcome}; want a number from 0 to 1")

"""From rewards to advantages: against a group, per turn, and without flipping an outcome's sign.

A group holds the rewards of trajectories of one task. None is a reward that is not known; it leaves
the group. A group with fewer than two known rewards, or with equal ones, teaches nothing: its
advantages are None.

Sources: GRPO (Shao et al., 2024), RLOO (Ahmadian et al., 2024), per-turn groups (arXiv 2605.06200),
OTC-PO (arXiv 2504.14870, equations 3 to 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Baseline = Literal["std", "leave_one_out", "mean"]
_EPSILON = 1e-6
_EQUAL = 1e-9


def group_advantages(
    rewards: Sequence[float | None], baseline: Baseline = "leave_one_out"
) -> list[float | None]:
    """The advantage of each reward over its group.

    ``std``: (r - mean) / (population std + 1e-6), the paper's. ``mean``: r - mean.
    ``leave_one_out``: r minus the mean of the others.
    """
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2 or max(known) - min(known) < _EQUAL:
        return [None] * len(rewards)
    total, count = math.fsum(known), len(known)
    mean = total / count
    if baseline == "leave_one_out":
        return [None if r is None else r - (total - r) / (count - 1) for r in rewards]
    scale = 1.0
    if baseline == "std":
        scale = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / count) + _EPSILON
    return [None if r is None else (r - mean) / scale for r in rewards]


def turn_advantages(
    rewards: Sequence[Sequence[float | None]], baseline: Baseline = "leave_one_out"
) -> list[list[float | None]]:
    """Advantages of the rewards of calls, call k of a trajectory against call k of the others."""
    advantages: list[list[float | None]] = [[None] * len(own) for own in rewards]
    for turn in range(max((len(own) for own in rewards), default=0)):
        column = [own[turn] if turn < len(own) else None for own in rewards]
        for own, advantage in zip(advantages, group_advantages(column, baseline), strict=True):
            if turn < len(own):
                own[turn] = advantage
    return advantages


def with_bonus(outcome_advantage: float, bonus: float) -> float:
    """Their sum, but never of the other sign than ``outcome_advantage`` (0 at most)."""
    total = outcome_advantage + bonus
    if outcome_advantage > 0:
        return max(total, 0.0)
    if outcome_advantage < 0:
        return min(total, 0.0)
    return total


def otc_rewards(
    outcomes: Sequence[float], n_calls: Sequence[int], *, smoothing: float = 4.0
) -> list[float]:
    """OTC-GRPO of one group: the outcome times a factor, 1 at the fewest calls that sufficed.

    With m calls, and n the fewest of a trajectory of the group with the best outcome (above 0):
    f = 2nm / (m + n), factor sin(f π / 2n); where n = 0, cos(m π / (2m + ``smoothing``)).
    """
    best = max(outcomes, default=0.0)
    if best <= 0:
        return [0.0] * len(outcomes)
    fewest = min(m for m, outcome in zip(n_calls, outcomes, strict=True) if outcome == best)
    return [
        outcome * _otc_factor(m, fewest, smoothing)
        for m, outcome in zip(n_calls, outcomes, strict=True)
    ]


def _otc_factor(m: int, n: int, smoothing: float) -> float:
    if n == 0:
        return math.cos(m * math.pi / (2 * m + smoothing))
    if m == 0:
        return 0.0  # a worse outcome with fewer calls than suffice
    return math.sin(2 * n * m / (m + n) * math.pi / (2 * n))

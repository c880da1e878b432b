"""Asymptotic intervals of means and shares over independent trajectories.

Approximate for a few dozen trajectories; promises rest on the exact bounds of `risk.ltt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

Limits = tuple[float, float]


def mean_interval(values: Sequence[float], delta: float = 0.05) -> Limits | None:
    """Normal interval of the mean with confidence 1 − ``delta``; None for fewer than two values."""
    if len(values) < 2:
        return None
    seen = np.asarray(values, dtype=np.float64)
    half = _quantile(delta) * float(seen.std(ddof=1)) / sqrt(len(seen))
    mean = float(seen.mean())
    return mean - half, mean + half


def share_interval(share: float, n: int, delta: float = 0.05) -> Limits | None:
    """Wilson's interval of the mean ``share`` of ``n`` numbers in [0, 1]; None for ``n`` = 0.

    Meant for zeros and ones; conservative for other numbers, whose variance is at most
    ``share`` (1 − ``share``).
    """
    if n == 0:
        return None
    z2 = _quantile(delta) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def ratio_interval(
    parts: Sequence[float], wholes: Sequence[float], delta: float = 0.05
) -> Limits | None:
    """Interval of Σ ``parts`` / Σ ``wholes`` in [0, 1], one pair per trajectory; None if Σ is 0.

    Calls of one trajectory are not independent, so the variance is that of the ratio, linearised
    over trajectories. If all have the same ratio: Wilson's interval over trajectories.
    """
    part, whole = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    n, total = int((whole > 0).sum()), float(whole.sum())
    if n == 0:
        return None
    share = float(part.sum()) / total
    left = part - share * whole
    variance = float((left**2).sum()) / total**2 * n / max(1, n - 1)
    if variance <= 1e-18:
        return share_interval(share, n, delta)
    half = _quantile(delta) * sqrt(variance)
    return max(0.0, share - half), min(1.0, share + half)


def _quantile(delta: float) -> float:
    return NormalDist().inv_cdf(1 - delta / 2)

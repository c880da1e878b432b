"""Intervals at 95 % that are always there, and percentiles."""

import math
from collections.abc import Sequence

from entrogate.risk import means


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion; (0, 1) without trials."""
    found = means.share_interval(successes / trials, trials) if trials else None
    return found or (0.0, 1.0)


def mean(values: Sequence[float]) -> float:
    """The mean, or 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean plus and minus 1.96 standard errors (the normal interval; for some tens and up)."""
    return means.mean_interval(values) or (mean(values), mean(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, by linear interpolation; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

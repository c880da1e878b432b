"""Intervals at 95 % and percentiles, in plain Python."""

import math
from collections.abc import Sequence

_Z = 1.959963984540054


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, _Z * _Z
    centre = share + square / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean(values: Sequence[float]) -> float:
    """The mean, or 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean plus and minus 1.96 standard errors (the normal interval; for some tens and up)."""
    centre = mean(values)
    if len(values) < 2:
        return centre, centre
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    spread = _Z * math.sqrt(variance / len(values))
    return centre - spread, centre + spread


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, by linear interpolation; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])

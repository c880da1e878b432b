"""Learn-then-Test for a loss of 0 or 1: which of a row of thresholds keep the risk below a level.

For each threshold the hypothesis "the risk is above ε" is tested with the exact binomial p-value
P(Bin(n, ε) ≤ losses). The thresholds are tested in a fixed order, the strictest first, each at the
full level δ, and the first that is not rejected ends the test. A threshold whose risk is above ε is
then certified with probability at most δ, however the risk runs along the thresholds: a wrong
certification needs the first such threshold of the order to be rejected, which happens with
probability at most δ. The order and the thresholds have to be fixed without the losses tested.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, *Learn then Test*, arXiv 2110.01052, sections 2.2
and 3.1 (fixed sequence testing); Clopper and Pearson 1934 for the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BISECTIONS = 60
_MOST_TRIALS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Certification:
    """What a fixed-sequence test says of a row of thresholds.

    ``index`` is the loosest certified threshold, None where not even the strictest one is.
    ``p_values`` are those of the thresholds in their order, those past the end of the test
    included (they are not used).
    """

    index: int | None
    p_values: NDArray[np.float64]


def check_levels(max_loss: float, delta: float) -> None:
    """Raises ValueError unless both are probabilities strictly between 0 and 1."""
    for name, value in (("max loss", max_loss), ("delta", delta)):
        if not 0.0 < value < 1.0:  # also false for nan
            raise ValueError(f"{name} is {value}; want a number between 0 and 1, both excluded")


def certify(losses: Sequence[int], n: int, *, max_loss: float, delta: float) -> Certification:
    """Test thresholds in their order, given the ``losses`` of each among the same ``n`` samples.

    Raises ValueError for levels outside (0, 1), no samples, or losses outside 0 … n.
    """
    check_levels(max_loss, delta)
    known = {each: p_value(each, n, max_loss) for each in set(losses)}
    p_values = np.array([known[each] for each in losses], dtype=np.float64)
    passed = p_values <= delta
    count = len(passed) if bool(passed.all()) else int(np.argmin(passed))
    return Certification(index=count - 1 if count else None, p_values=p_values)


def p_value(losses: int, n: int, max_loss: float) -> float:
    """P(Bin(n, max_loss) ≤ losses): how likely so few losses are if the risk is ``max_loss``.

    Raises ValueError for no samples, or losses outside 0 … n.
    """
    _check_counts(losses, n)
    return binomial_cdf(losses, n, max_loss)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Bin(n, p) ≤ k), summed from the smaller tail's largest term down: exact to rounding."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    if k > n * p:  # the other tail is the smaller one
        return 1.0 - binomial_cdf(n - k - 1, n, 1.0 - p)
    counts = np.arange(k, -1, -1, dtype=np.float64)
    # pmf(i - 1) / pmf(i) = i (1 - p) / ((n - i + 1) p), each at most 1 below the mean
    ratios = counts[:-1] * (1.0 - p) / ((n - counts[:-1] + 1.0) * p)
    terms = np.concatenate(([1.0], np.cumprod(ratios)))
    return min(1.0, math.exp(_log_pmf(k, n, p)) * float(terms.sum()))


def upper_bound(losses: int, n: int, delta: float) -> float:
    """The risk is at most this with confidence 1 − ``delta`` (Clopper and Pearson, one-sided).

    It is at most ε exactly where `p_value` for ε is at most ``delta``.
    """
    _check_counts(losses, n)
    if losses == n:
        return 1.0
    low, high = losses / n, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(losses, n, middle) > delta else (low, middle)
    return high


def lower_bound(losses: int, n: int, delta: float) -> float:
    """The risk is at least this with confidence 1 − ``delta``."""
    return 1.0 - upper_bound(n - losses, n, delta)


def interval(count: int, n: int, delta: float) -> tuple[float, float]:
    """Both bounds of a share, with confidence 1 − ``delta`` together."""
    return lower_bound(count, n, delta / 2), upper_bound(count, n, delta / 2)


def samples_needed(losses: int, n: int, *, max_loss: float, delta: float) -> int | None:
    """How many samples would certify a threshold that goes on losing at the rate seen.

    A number m with P(Bin(m, max_loss) ≤ ⌈m · losses / n⌉) ≤ delta that m − 1 does not reach. None
    where the rate is at or above ``max_loss``: then no number is expected to be enough. Without
    samples a rate of 0 is supposed: the number that any threshold needs at least.
    """
    check_levels(max_loss, delta)
    rate = losses / n if n else 0.0
    if rate >= max_loss:
        return None

    def enough(m: int) -> bool:
        return binomial_cdf(math.ceil(m * rate - 1e-9), m, max_loss) <= delta

    high = max(1, math.ceil(math.log(delta) / math.log1p(-max_loss)))
    while not enough(high):
        high *= 2
        if high > _MOST_TRIALS:
            return None
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _log_pmf(k: int, n: int, p: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(p) + (n - k) * math.log1p(-p)


def _check_counts(losses: int, n: int) -> None:
    if n < 1:
        raise ValueError("no samples: at least one is needed")
    if not 0 <= losses <= n:
        raise ValueError(f"{losses} losses of {n} samples; want 0 … {n}")

"""Bounds on the rate of a yes-or-no outcome that hold at all times at once.

A test for a fixed number of observations may not be looked at again and again: sooner or later it
raises an alarm by chance. The bounds here hold simultaneously for every number of observations, so
they may be recomputed after each one and acted on as soon as they say something.

After n outcomes with S losses the evidence against "the rate is at most p" is

    K(p) = ∫_p^1 (q/p)^S ((1-q)/(1-p))^(n-S) dBeta(q; 1/2, 1/2),

what a gambler owns who began with at most 1 and, for every q above p, bet at odds that are fair for
p. Another outcome multiplies each factor by a number whose mean is at most 1 if the probability of
a loss, given all before it, is at most p, since q > p. So K is then a supermartingale that begins
at 1 or less, and exceeds 1/δ at any time with probability at most δ (Ville's inequality). The rate
may vary meanwhile: it is enough that it is never above p.

K falls as p rises towards S/n, so "K(p) >= 1/δ" holds for all p up to some number: the lower bound.
The upper bound is one minus the lower bound of the rate of gains. It is Robbins' method of mixtures
(H. Robbins, "Statistical methods related to the law of the iterated logarithm", Ann. Math. Stat.
41, 1970) with the beta distribution restricted to one side; for betting on bounded outcomes see
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024.

After a long time without losses, S/n hides for as long again that the rate has risen. `watch`
therefore looks at the latest outcomes alone as well: from every 64th outcome on it keeps another
sequence, and gives each a share of δ, half of it to the whole (the idea of e-detectors: Shin,
Ramdas and Rinaldo, "E-detectors", New Engl. J. Stat. Data Sci. 2, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PRIOR = 0.5  # both parameters: Jeffreys' prior, whose regret is ½ ln n whatever the rate
STRETCH = 64
"""A sequence of its own begins with every so many outcomes."""

_STRETCHES = 256  # of the latest of them: what is older than 16,384 outcomes counts as a whole
_BISECTIONS = 60
_FRACTION_TERMS = 100_000
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class RateBounds:
    """A rate and what is known of it: each bound holds at all times with confidence 1 - δ."""

    n: int
    losses: int
    lower: float
    upper: float

    @property
    def estimate(self) -> float | None:
        """The share of losses so far; None before the first outcome."""
        return None if self.n == 0 else self.losses / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a stream of outcomes says of its rate, which may have changed on the way.

    ``lower`` and ``upper`` bound the rate of the outcomes from number ``since`` on: those of all
    stretches up to now that raise the lower bound most. That the rate was never above ``lower`` is
    refuted with confidence 1 - δ, at all times.
    """

    n: int  # in all
    losses: int
    since: int
    lower: float
    upper: float

    @property
    def estimate(self) -> float | None:
        """The share of losses in all outcomes; None before the first one."""
        return None if self.n == 0 else self.losses / self.n


def watch(outcomes: Sequence[bool], delta: float) -> Watched:
    """Bounds after ``outcomes``, the oldest first; True is a loss.

    Call it again whenever there are more: with probability at least 1 - ``delta`` no lower bound
    that it ever gives is above the highest rate so far. Raises ValueError for a ``delta`` that is
    not between 0 and 1.
    """
    _check_open(delta, "delta")
    n, losses = len(outcomes), sum(outcomes)
    since, worst = 0, rate_bounds(losses, n, delta / 2)
    for start, lost, share in _stretches(outcomes):
        seen = n - start
        if lost <= worst.lower * seen:
            continue
        if worst.lower == 0.0 or exceeds(lost, seen, worst.lower, delta * share):
            since, worst = start, rate_bounds(lost, seen, delta * share)
    return Watched(n=n, losses=losses, since=since, lower=worst.lower, upper=worst.upper)


def _stretches(outcomes: Sequence[bool]) -> Iterator[tuple[int, int, float]]:
    """Where each but the whole begins, its losses and its share of δ; with ½ for the whole all
    shares together are at most 1."""
    n_starts = max(0, len(outcomes) - 1) // STRETCH
    losses, end = 0, len(outcomes)
    for i in range(n_starts, max(0, n_starts - _STRETCHES), -1):
        losses += sum(outcomes[i * STRETCH : end])
        end = i * STRETCH
        yield end, losses, 0.5 / (i * (i + 1))  # 1/(i(i+1)) sums to 1 over all i >= 1


def rate_bounds(losses: int, n: int, delta: float) -> RateBounds:
    """The bounds after ``n`` outcomes, ``losses`` of them losses.

    Each of the two fails, at any time ever, with probability at most ``delta``. Raises ValueError
    for counts that cannot be, and for a ``delta`` that is not between 0 and 1.
    """
    _check(losses, n)
    _check_open(delta, "delta")
    return RateBounds(
        n=n,
        losses=losses,
        lower=_lower(losses, n, delta),
        upper=1.0 - _lower(n - losses, n, delta),
    )


def exceeds(losses: int, n: int, rate: float, delta: float) -> bool:
    """Whether the rate is above ``rate``, with confidence 1 - ``delta`` at all times at once.

    The same as ``rate_bounds(losses, n, delta).lower > rate``, without searching for the bound.
    """
    _check_open(delta, "delta")
    return log_evidence(losses, n, rate) > -math.log(delta)


def log_evidence(losses: int, n: int, rate: float) -> float:
    """ln K(``rate``): the evidence against "the rate is at most ``rate``" (see the module).

    Raises ValueError for counts that cannot be, and for a rate that is not between 0 and 1.
    """
    _check(losses, n)
    _check_open(rate, "the rate")
    return _log_evidence(losses, n, rate)


def _log_evidence(losses: int, n: int, rate: float) -> float:
    a, b = _PRIOR + losses, _PRIOR + n - losses
    mixture = _log_beta(a, b) - _log_beta(_PRIOR, _PRIOR) + _log_upper_tail(a, b, rate)
    return mixture - losses * math.log(rate) - (n - losses) * math.log1p(-rate)


def _lower(losses: int, n: int, delta: float) -> float:
    """The largest p up to which K(p) >= 1/δ."""
    if losses == 0:
        return 0.0
    enough = -math.log(delta)
    low, high = 0.0, losses / n  # K is infinite at 0 and at most 1 at S/n
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle <= 0.0 or middle >= 1.0:
            break
        if _log_evidence(losses, n, middle) >= enough:
            low = middle
        else:
            high = middle
    return low


def _log_upper_tail(a: float, b: float, x: float) -> float:
    """ln P(X > x) for X ~ Beta(a, b), also where it is far too small for a float."""
    if x < (a + 1.0) / (a + b + 2.0):  # below the mean: the other tail is the smaller one
        return math.log1p(-math.exp(_log_small_tail(a, b, x)))
    return _log_small_tail(b, a, 1.0 - x)


def _log_small_tail(a: float, b: float, x: float) -> float:
    """ln of the regularised incomplete beta function I_x(a, b), for x below (a+1)/(a+b+2).

    By its continued fraction (DLMF 8.17.22), evaluated with Lentz's method.
    """
    front = a * math.log(x) + b * math.log1p(-x) - math.log(a) - _log_beta(a, b)
    c, d = 1.0, 1.0 / _nonzero(1.0 - (a + b) * x / (a + 1.0))
    total = d
    for m in range(1, _FRACTION_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 / _nonzero(1.0 + even * d)
        c = _nonzero(1.0 + even / c)
        total *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 / _nonzero(1.0 + odd * d)
        c = _nonzero(1.0 + odd / c)
        factor = d * c
        total *= factor
        if abs(factor - 1.0) < 1e-15:
            break
    return min(0.0, front + math.log(total))


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _check(losses: int, n: int) -> None:
    if n < 0 or not 0 <= losses <= n:
        raise ValueError(f"{losses} losses of {n} outcomes: give 0 <= losses <= outcomes")


def _check_open(value: float, what: str) -> None:
    if not 0.0 < value < 1.0:  # nan included
        raise ValueError(f"{what} is {value}, it must be between 0 and 1, both excluded")

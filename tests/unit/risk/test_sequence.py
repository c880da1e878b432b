"""The confidence sequence: against brute force, against scipy, and against simulated streams."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from entrogate.risk.sequence import exceeds, log_evidence, rate_bounds, watch
from entrogate_lab.bench import fuse

DELTA = 0.1
LIMIT = 0.05
STREAMS, LENGTH = 1000, 1500


@pytest.mark.parametrize(
    ("losses", "n", "rate"),
    [(0, 0, 0.05), (0, 10, 0.05), (3, 10, 0.05), (10, 10, 0.3), (40, 1000, 0.05), (7, 9, 0.9)],
)
def test_evidence_is_the_integral(losses: int, n: int, rate: float) -> None:
    # With q = sin²θ the prior is flat in θ, so that nothing is infinite at the ends.
    def ratio(angle: float) -> float:
        q = math.sin(angle) ** 2
        return (q / rate) ** losses * (math.cos(angle) ** 2 / (1 - rate)) ** (n - losses)

    lowest, middle = math.asin(math.sqrt(rate)), math.asin(math.sqrt(losses / n if n else 0.5))
    edges = sorted({lowest, max(lowest, middle), math.pi / 2})
    whole = sum(
        integrate.quad(ratio, low, high, limit=500)[0] * 2 / math.pi
        for low, high in itertools.pairwise(edges)
    )
    assert log_evidence(losses, n, rate) == pytest.approx(math.log(whole), rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_evidence_agrees_with_scipy(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 100_000))
    losses = data.draw(st.integers(0, n))
    rate = data.draw(st.floats(1e-4, 1 - 1e-4))
    after = stats.beta(losses + 0.5, n - losses + 0.5)
    # Bayes: the mixture is prior over posterior density, times the likelihood, at any point
    likelihood = stats.binom.logpmf(losses, n, rate)
    with np.errstate(divide="ignore"):  # an older scipy takes the logarithm of what underflowed
        tail = after.logsf(rate)
    mixture = stats.betabinom.logpmf(losses, n, 0.5, 0.5) + tail
    if math.isfinite(likelihood) and math.isfinite(mixture):
        expected = mixture - likelihood
        assert log_evidence(losses, n, rate) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bounds_hold_together(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5000))
    losses = data.draw(st.integers(0, n))
    delta = data.draw(st.floats(1e-6, 0.9))
    found = rate_bounds(losses, n, delta)
    assert found.estimate == losses / n
    assert 0.0 <= found.lower <= losses / n <= found.upper <= 1.0
    mirrored = rate_bounds(n - losses, n, delta)
    assert found.lower == pytest.approx(1 - mirrored.upper, abs=1e-12)
    assert rate_bounds(losses, n, delta / 2).lower <= found.lower
    if 0 < found.lower < 0.999:
        assert exceeds(losses, n, found.lower * 0.999, delta)
        assert not exceeds(losses, n, min(found.lower * 1.001 + 1e-9, 0.9999), delta)


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.001, 0.999))
def test_a_fair_bet_gains_nothing_in_the_mean(losses: int, gains: int, rate: float) -> None:
    """At a rate of exactly p the next outcome leaves the mean of K where it is."""
    n = losses + gains
    now = log_evidence(losses, n, rate)
    after_loss = log_evidence(losses + 1, n + 1, rate)
    after_gain = log_evidence(losses, n + 1, rate)
    mean = np.logaddexp(math.log(rate) + after_loss, math.log1p(-rate) + after_gain)
    assert mean == pytest.approx(now, abs=1e-7)
    assert after_gain <= now + 1e-9 <= after_loss + 2e-9  # a lower rate gains less


def test_nothing_seen_is_nothing_known() -> None:
    nothing = rate_bounds(0, 0, DELTA)
    assert (nothing.lower, nothing.upper, nothing.estimate) == (0.0, 1.0, None)
    assert rate_bounds(5, 5, DELTA).upper == 1.0
    assert rate_bounds(0, 5, DELTA).lower == 0.0


def test_many_outcomes_pin_the_rate_down() -> None:
    found = rate_bounds(50_000, 1_000_000, DELTA)
    assert 0.049 < found.lower < 0.05 < found.upper < 0.051


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0, math.nan, math.inf])
def test_delta_is_inside_the_unit_interval(delta: float) -> None:
    with pytest.raises(ValueError, match=r"delta is .*, it must be between 0 and 1"):
        rate_bounds(1, 2, delta)
    with pytest.raises(ValueError, match="delta"):
        exceeds(1, 2, LIMIT, delta)


def test_bad_counts_and_rates() -> None:
    for losses, n in ((3, 2), (-1, 2), (0, -1)):
        with pytest.raises(ValueError, match="give 0 <= losses <= outcomes"):
            rate_bounds(losses, n, DELTA)
    for rate in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="the rate is"):
            log_evidence(1, 2, rate)


def drawn(rates: NDArray[np.float64], seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(rates.shape) < rates


def alarms(losses: NDArray[np.bool_]) -> NDArray[np.int64]:
    return fuse.alarms(losses, LIMIT, DELTA)


def test_the_simulated_alarms_are_those_of_the_watch() -> None:
    rates = np.full((12, 400), 0.03)
    rates[:, 200:] = 0.2
    losses = drawn(rates, seed=5)
    for stream, when in zip(losses, alarms(losses), strict=True):
        assert when > 0
        before, at = (watch(stream[:n].tolist(), DELTA) for n in (when - 1, when))
        assert before.lower <= LIMIT < at.lower


def constant(rate: float) -> NDArray[np.float64]:
    return np.full((STREAMS, LENGTH), rate)


def varying() -> NDArray[np.float64]:
    """Rates that come and go, sometimes at the limit and never above it."""
    wave = np.sin(np.arange(LENGTH) / 40.0)
    return np.broadcast_to(np.where(wave > 0, LIMIT, LIMIT / 5), (STREAMS, LENGTH))


@pytest.mark.parametrize("name", ["at the limit", "below it", "varying"])
def test_false_alarms_are_rarer_than_delta(name: str) -> None:
    rates = {"at the limit": constant(LIMIT), "below it": constant(0.04), "varying": varying()}
    false = int((alarms(drawn(rates[name], seed=7)) > 0).sum())
    # With 99.9 % confidence the probability of a false alarm is below delta, not just their share.
    highest = stats.beta.ppf(0.999, false + 1, STREAMS - false)
    assert highest <= DELTA, f"{false} of {STREAMS} streams raised a false alarm"


def test_a_test_for_one_sample_size_would_not_do() -> None:
    """The simulation can tell: an exact binomial test, made after each outcome, fails it."""
    losses = drawn(constant(LIMIT), seed=7).cumsum(axis=1)
    critical = stats.binom.isf(DELTA, np.arange(1, LENGTH + 1), LIMIT) + 1
    false = int((losses >= critical).any(axis=1).sum())
    assert stats.beta.ppf(0.001, false, STREAMS - false + 1) > DELTA


@pytest.mark.parametrize(
    ("good", "rate", "median", "nine_tenths"),
    [(0, 0.15, 75, 150), (100, 0.15, 150, 250), (1000, 0.15, 250, 400), (100, 0.25, 60, 100)],
)
def test_a_shift_is_detected(good: int, rate: float, median: int, nine_tenths: int) -> None:
    """Outcomes until the alarm, after ``good`` ones at a loss rate of 2 %."""
    rates = constant(rate)
    rates[:, :good] = 0.02
    when = alarms(drawn(rates, seed=11))
    false = int(((when > 0) & (when <= good)).sum())
    assert stats.beta.ppf(0.999, false + 1, STREAMS - false) <= DELTA
    delays = np.where(when == 0, LENGTH, when - good)[(when == 0) | (when > good)]
    assert np.median(delays) <= median
    assert np.quantile(delays, 0.9) <= nine_tenths


def test_a_long_good_time_does_not_hide_a_shift() -> None:
    """By all outcomes alone, 1000 good ones hide it for hundreds more."""
    rates = constant(0.15)
    rates[:, :1000] = 0.02
    losses = drawn(rates, seed=17)
    whole = losses.cumsum(axis=1) >= fuse.fewest_losses(LENGTH, LIMIT, DELTA)
    by_all = np.where(whole.any(axis=1), whole.argmax(axis=1) + 1, LENGTH)
    assert np.median(by_all) - 1000 > 400
    assert np.median(alarms(losses)) - 1000 < 250


def test_the_bounds_are_those_of_the_worst_stretch() -> None:
    stream = [False] * 640 + [True] * 16
    found = watch(stream, DELTA)
    assert (found.n, found.losses, found.since) == (656, 16, 640)
    assert found.estimate == pytest.approx(16 / 656)
    share = 0.5 / (10 * 11)
    alone = rate_bounds(16, 16, DELTA * share)
    assert (found.lower, found.upper) == (alone.lower, alone.upper)
    assert watch([], DELTA).lower == 0.0
    assert watch([], DELTA).upper == 1.0

"""Learn-then-Test: against scipy's binomials, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entrogate.risk.ltt import (
    binomial_cdf,
    certify,
    interval,
    lower_bound,
    p_value,
    samples_needed,
    upper_bound,
)


@given(
    n=st.integers(1, 3000),
    share=st.floats(0, 1),
    p=st.floats(0.0001, 0.9999),
)
def test_the_binomial_distribution_is_scipys(n: int, share: float, p: float):
    k = int(share * n)

    assert binomial_cdf(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-8, abs=1e-12)


def test_a_large_sample_neither_overflows_nor_vanishes():
    assert binomial_cdf(4800, 100_000, 0.05) == pytest.approx(
        stats.binom.cdf(4800, 100_000, 0.05), rel=1e-7
    )


@pytest.mark.parametrize(("losses", "n"), [(0, 45), (3, 147), (10, 10), (0, 1), (60, 1000)])
def test_bounds_are_those_of_clopper_and_pearson(losses: int, n: int):
    exact = stats.binomtest(losses, n, alternative="less").proportion_ci(0.9, method="exact")
    below = stats.binomtest(losses, n, alternative="greater").proportion_ci(0.9, method="exact")
    both = stats.binomtest(losses, n).proportion_ci(0.95, method="exact")

    assert upper_bound(losses, n, 0.1) == pytest.approx(exact.high, abs=1e-9)
    assert lower_bound(losses, n, 0.1) == pytest.approx(below.low, abs=1e-9)
    assert interval(losses, n, 0.05) == pytest.approx((both.low, both.high), abs=1e-9)


@given(n=st.integers(1, 400), share=st.floats(0, 1), max_loss=st.floats(0.01, 0.5))
def test_a_p_value_is_significant_exactly_where_the_bound_holds(
    n: int, share: float, max_loss: float
):
    losses = int(share * n)
    bound = upper_bound(losses, n, 0.1)
    if math.isclose(bound, max_loss, rel_tol=1e-9):
        return

    assert (p_value(losses, n, max_loss) <= 0.1) == (bound <= max_loss)


def test_the_first_threshold_that_fails_ends_the_test():
    n, p = 100, [stats.binom.cdf(k, 100, 0.05) for k in (0, 1, 4, 1)]

    result = certify([0, 1, 4, 1], n, max_loss=0.05, delta=0.1)

    assert result.p_values == pytest.approx(p)
    assert result.index == 1  # the last one would pass by itself, but comes after a failure
    assert certify([4, 0, 0], n, max_loss=0.05, delta=0.1).index is None
    assert certify([0, 0, 0], n, max_loss=0.05, delta=0.1).index == 2
    assert certify([], n, max_loss=0.05, delta=0.1).index is None


def test_forty_five_samples_are_the_fewest_for_five_percent_at_ninety():
    assert samples_needed(0, 0, max_loss=0.05, delta=0.1) == 45
    assert certify([0], 44, max_loss=0.05, delta=0.1).index is None
    assert certify([0], 45, max_loss=0.05, delta=0.1).index == 0


@given(
    losses=st.integers(0, 12),
    n=st.integers(20, 400),
    max_loss=st.floats(0.02, 0.2),
    delta=st.floats(0.01, 0.4),
)
def test_the_samples_needed_are_enough_and_one_fewer_are_not(
    losses: int, n: int, max_loss: float, delta: float
):
    needed = samples_needed(losses, n, max_loss=max_loss, delta=delta)

    if needed is None:
        # at the level or so near that millions would be needed
        assert losses / n >= max_loss * 0.98
        return
    rate = losses / n
    at, before = (math.ceil(m * rate - 1e-9) for m in (needed, needed - 1))
    assert stats.binom.cdf(at, needed, max_loss) <= delta * (1 + 1e-9)
    assert stats.binom.cdf(before, needed - 1, max_loss) > delta * (1 - 1e-9) or needed == 1


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_levels_outside_the_unit_interval_are_refused(level: float):
    with pytest.raises(ValueError, match=r"max loss is .*between 0 and 1"):
        certify([0], 10, max_loss=level, delta=0.1)
    with pytest.raises(ValueError, match=r"delta is .*between 0 and 1"):
        certify([0], 10, max_loss=0.1, delta=level)


@pytest.mark.parametrize(("losses", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(losses: int, n: int):
    with pytest.raises(ValueError, match="samples"):
        p_value(losses, n, 0.1)


@pytest.mark.parametrize(
    "risks",
    [
        np.linspace(0.0, 0.2, 41),  # grows
        np.concatenate([np.linspace(0.0, 0.06, 12), np.linspace(0.06, 0.01, 12)]),  # and falls
        np.full(20, 0.0501),  # every threshold is one too many
    ],
    ids=["growing", "up-and-down", "all-above"],
)
@pytest.mark.parametrize(("n", "max_loss", "delta"), [(150, 0.05, 0.1), (400, 0.05, 0.2)])
def test_the_true_risk_is_above_the_level_in_at_most_delta_of_the_logs(
    risks: np.ndarray, n: int, max_loss: float, delta: float
):
    """2,000 logs. The losses of a sample at different thresholds are as dependent as they get."""
    random = np.random.default_rng(20_241)
    logs, broken = 2000, 0

    for _ in range(logs):
        draws = np.sort(random.random(n))
        losses = np.searchsorted(draws, risks)
        index = certify(losses.tolist(), n, max_loss=max_loss, delta=delta).index
        broken += index is not None and bool(risks[index] > max_loss)

    assert broken <= stats.binom.ppf(0.999, logs, delta)
    if risks[0] > max_loss:  # an exact test of one level: not emptily true
        exact = stats.binom.cdf(stats.binom.ppf(delta, n, max_loss) - 1, n, risks[0])
        assert broken >= stats.binom.ppf(0.001, logs, exact)

"""Intervals of means and shares: against scipy's, and they cover as often as they say."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from entrogate.risk.means import mean_interval, ratio_interval, share_interval


def test_means_against_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=200)
    lower, upper = stats.norm.interval(0.9, values.mean(), stats.sem(values))
    assert mean_interval(list(values), 0.1) == pytest.approx((lower, upper))
    assert mean_interval([1.0]) is None


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (400, 1000)])
def test_shares_against_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert share_interval(k / n, n) == pytest.approx((expected.low, expected.high))
    assert share_interval(0.0, 0) is None


def test_the_ratio_covers_the_truth_where_calls_of_a_trajectory_depend_on_each_other() -> None:
    rng, runs, n = np.random.default_rng(2), 400, 120
    covered = narrow = 0
    for _ in range(runs):
        wholes = rng.integers(0, 8, size=n)
        parts = rng.binomial(wholes, rng.beta(1.0, 2.0, size=n))  # a third, within each its own
        limits = ratio_interval(list(parts), list(wholes))
        assert limits is not None
        covered += limits[0] <= 1 / 3 <= limits[1]
        alone = share_interval(float(parts.sum() / wholes.sum()), int(wholes.sum()))
        assert alone is not None
        narrow += alone[0] <= 1 / 3 <= alone[1]
    # 5 standard deviations of a binomial count around 95 % of the runs, less 1.5 % for small n.
    assert covered >= runs * 0.935 - 5 * sqrt(runs * 0.95 * 0.05)
    assert narrow < covered - 20  # calls taken for independent ones cover too seldom


def test_a_ratio_without_spread() -> None:
    assert ratio_interval([0.0, 0.0], [0.0, 0.0]) is None
    assert ratio_interval([0.0, 0.0, 0.0], [1.0, 3.0, 0.0]) == share_interval(0.0, 2)

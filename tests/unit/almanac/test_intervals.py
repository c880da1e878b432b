import pytest

from entrogate_lab.almanac.intervals import mean, mean_interval, percentile, wilson


def test_wilson_against_published_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20 and 1/29 by the score method.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_by_hand():
    # 1, 2, 3, 4: mean 2.5, variance 5/3, standard error sqrt(5/12) = 0.645497.
    assert mean_interval([1, 2, 3, 4]) == pytest.approx((2.5 - 1.265151, 2.5 + 1.265151), abs=1e-6)
    assert mean_interval([7.0]) == (7.0, 7.0)
    assert mean([]) == 0.0


def test_percentile_interpolates():
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([10], 0.95) == 10
    assert percentile([0, 10], 0.95) == pytest.approx(9.5)
    assert percentile([], 0.5) == 0.0

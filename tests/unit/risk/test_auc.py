"""AUC and its interval: against brute force, scikit-learn and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entrogate.risk.auc import auc


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({right for _, right in pairs}) == 2
    )
)
def test_the_area_counts_pairs_and_ties_half(pairs: list[tuple[int, bool]]):
    metrics = pytest.importorskip("sklearn.metrics")
    numbers = np.array([number for number, _ in pairs], dtype=np.float64)
    right = np.array([each for _, each in pairs])
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in numbers[right]
        for low in numbers[~right]
    ]

    found = auc(numbers, right)

    assert found is not None
    assert found.value == pytest.approx(np.mean(wins))
    assert found.value == pytest.approx(metrics.roc_auc_score(right, numbers))
    assert 0.0 <= found.lower <= found.value <= found.upper <= 1.0
    assert (found.n_right, found.n_wrong) == (right.sum(), (~right).sum())


def test_clusters_of_one_give_delongs_variance():
    random = np.random.default_rng(3)
    right = random.random(200) < 0.6
    numbers = random.normal(size=200) + right
    above, below = numbers[right], numbers[~right]
    wins = (above[:, None] > below[None, :]).astype(float)
    variance = wins.mean(1).var(ddof=1) / len(above) + wins.mean(0).var(ddof=1) / len(below)
    value = wins.mean()
    centre = np.log(value / (1 - value))
    reach = 1.959964 * np.sqrt(variance) / (value * (1 - value))

    found = auc(numbers, right)

    assert found is not None
    assert (found.lower, found.upper) == pytest.approx(
        (1 / (1 + np.exp(-(centre - reach))), 1 / (1 + np.exp(-(centre + reach)))), abs=1e-6
    )


@pytest.mark.parametrize("turns", [1, 4])
def test_the_interval_covers_the_truth_also_where_samples_come_in_clusters(turns: int):
    """1,000 logs of 60 trajectories whose turns share most of their noise and their class."""
    random = np.random.default_rng(7)
    logs, trajectories, covered, naive = 1000, 60, 0, 0
    truth = stats.norm.cdf(1 / np.sqrt(2))  # two normals, one unit apart
    clusters = np.repeat(np.arange(trajectories), turns)

    for _ in range(logs):
        right = np.repeat(random.random(trajectories) < 0.5, turns)
        noise = np.sqrt(0.9) * np.repeat(random.normal(size=trajectories), turns)
        numbers = right + noise + np.sqrt(0.1) * random.normal(size=trajectories * turns)
        found, plain = auc(numbers, right, clusters=clusters), auc(numbers, right)
        assert found is not None
        assert plain is not None
        covered += found.lower <= truth <= found.upper
        naive += plain.lower <= truth <= plain.upper

    assert covered >= stats.binom.ppf(0.001, logs, 0.93)
    if turns > 1:
        assert naive < 0.8 * logs  # which is why clusters are named


def test_turns_of_both_classes_in_one_trajectory_are_taken_together():
    """Their noise cancels in a comparison: an interval for independent turns would be too wide."""
    random = np.random.default_rng(9)
    logs, trajectories, found_widths, values = 400, 80, [], []
    clusters = np.repeat(np.arange(trajectories), 2)
    right = np.tile([True, False], trajectories)

    for _ in range(logs):
        noise = np.repeat(2.0 * random.normal(size=trajectories), 2)
        numbers = right + noise + 0.3 * random.normal(size=2 * trajectories)
        found = auc(numbers, right, clusters=clusters)
        assert found is not None
        values.append(found.value)
        found_widths.append((found.upper - found.lower) / (2 * 1.959964))

    assert np.mean(found_widths) == pytest.approx(np.std(values), rel=0.15)


def test_a_perfect_signal_is_not_a_certain_one():
    found = auc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True]))

    assert found is not None
    assert found.value == found.upper == 1.0
    assert found.lower == pytest.approx(0.025**0.5)
    turned = auc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, False]))
    assert turned is not None
    assert (turned.lower, turned.value, turned.upper) == pytest.approx((0.0, 0.0, 1 - 0.025**0.5))


def test_one_trajectory_of_a_class_says_nothing_of_the_spread():
    clusters = np.array([0, 0, 1, 2, 3])
    found = auc(
        np.array([1.0, 3.0, 2.0, 0.0, 0.5]),
        np.array([True, True, False, False, False]),
        clusters=clusters,
    )

    assert found is not None
    assert (found.lower, found.upper) == (0.0, 1.0)


def test_one_class_alone_has_no_area():
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert auc(np.array([]), np.array([], dtype=bool)) is None


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="nan"):
        auc(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="one length"):
        auc(np.array([1.0]), np.array([True, False]))

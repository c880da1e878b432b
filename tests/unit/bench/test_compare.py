"""Comparison at equal calls, with values worked out by hand."""

import numpy as np
import pytest

from entrogate_lab.bench.compare import Outcome, accuracy_at, compare


def outcome(correct: list[float], calls: list[float]) -> Outcome:
    return Outcome(correct=np.array(correct), calls=np.array(calls))


def test_interpolation() -> None:
    curve = [(4.0, 0.8), (0.0, 0.2), (2.0, 0.6)]
    assert accuracy_at(curve, 1.0) == pytest.approx(0.4)
    assert accuracy_at(curve, 3.0) == pytest.approx(0.7)
    assert accuracy_at(curve, -1.0) == pytest.approx(0.2)
    assert accuracy_at(curve, 9.0) == pytest.approx(0.8)


def test_difference_at_equal_calls() -> None:
    policy = outcome([1, 1, 1, 0], [1, 1, 1, 1])  # 0.75 at 1 call
    low = outcome([0, 0, 0, 0], [0, 0, 0, 0])
    high = outcome([1, 1, 1, 1], [2, 2, 2, 2])  # so 0.5 at 1 call
    found = compare(policy, [low, high])
    assert found.accuracy == pytest.approx(0.5)
    assert found.difference == pytest.approx(0.25)
    # Resampled accuracies of the policy are k/4, k ~ Binomial(4, 3/4); the rivals do not vary.
    assert found.lower == pytest.approx(-0.25)
    assert found.upper == pytest.approx(0.5)


def test_a_policy_does_not_beat_itself() -> None:
    rng = np.random.default_rng(3)
    one = Outcome(
        correct=rng.integers(0, 2, 50).astype(float), calls=rng.integers(0, 5, 50).astype(float)
    )
    found = compare(one, [one])
    assert (found.difference, found.lower, found.upper) == (0.0, 0.0, 0.0)


def test_the_runs_must_be_over_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        compare(outcome([1], [1]), [outcome([1, 0], [1, 1])])
    with pytest.raises(ValueError, match="shape"):
        outcome([1, 0], [1])

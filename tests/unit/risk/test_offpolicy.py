"""Off-policy estimators: against enumeration of a small world, plain loops, a bootstrap, and logs
that were simulated in a world whose truth is known."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from entrogate.risk.offpolicy import (
    Estimate,
    Log,
    doubly_robust,
    effective_size,
    fit,
    mean_estimate,
    per_decision,
    sampled,
    self_normalised,
    student_quantile,
)
from tests.unit.risk.world import Floats, simulate, truth

UNBOUNDED = (0.0, np.inf)
P_CALL = (Fraction(3, 4), Fraction(1, 3))  # that a call is sampled, by turn
LOGGING = (Fraction(1, 4), Fraction(2, 3))  # that the logging policy suppresses, by turn
TARGET = (Fraction(1, 2), Fraction(1, 5))


def paths(suppress: tuple[Fraction, ...]) -> list[tuple[Fraction, tuple[str, ...]]]:
    """Every way through two turns: masked (and so answered), called, or answered with no gate."""
    found: list[tuple[Fraction, tuple[str, ...]]] = []
    for probability, first in turn(suppress[0], P_CALL[0]):
        if first != "called":
            found.append((probability, (first,)))
            continue
        found += [
            (probability * after, (first, second)) for after, second in turn(suppress[1], P_CALL[1])
        ]
    return found


def turn(suppress: Fraction, p: Fraction) -> list[tuple[Fraction, str]]:
    return [
        (suppress, "masked"),
        ((1 - suppress) * p, "called"),
        ((1 - suppress) * (1 - p), "answered"),
    ]


def earned(path: tuple[str, ...]) -> list[float]:
    """By turn: 1 for an answer at once, 3 for one after a call, and -0.5 for each call.

    Masked or not sampled, an answer is the same.
    """
    rewards = [0.0, 0.0, 0.0]
    for place, what in enumerate(path):
        rewards[place + 1] = -0.5 if what == "called" else (1.0, 3.0)[place]
    return rewards


def population() -> tuple[Log, Floats, Floats, Floats]:
    """Each path of the logging policy as often as it is probable; rewards, and any Q with its V."""
    weighted = paths(LOGGING)
    together = int(np.lcm.reduce([probability.denominator for probability, _ in weighted]))
    quality = {"masked": (0.7, 2.0), "called": (-1.3, 0.4)}  # of no meaning at all
    rows: list[tuple[list[float], ...]] = []
    for probability, path in weighted:
        row: tuple[list[float], ...] = ([1.0] * 2, [0.0] * 2, [0.0] * 2, [0.0] * 2, [0.0] * 2)
        for place, what in enumerate(path):
            if what == "answered":
                continue  # no call, no record
            ratios, tilted, presence, q, v = row
            b, target = float(LOGGING[place]), float(TARGET[place])
            ratio = target / b if what == "masked" else (1 - target) / (1 - b)
            presence[place] = float(P_CALL[place]) if what == "masked" else 1.0
            tilted[place] = presence[place] * ratio
            ratios[place] = 1 - presence[place] + tilted[place]
            q[place] = quality[what][place]
            v[place] = target * quality["masked"][place] + (1 - target) * quality["called"][place]
        rows += [(*row, earned(path))] * int(probability * together)
    ratios, tilted, presence, q, v, rewards = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    clusters = np.arange(len(rows), dtype=np.int64)
    log = Log(ratios=ratios, tilted=tilted, presence=presence, clusters=clusters)
    return log, rewards, q, v


def test_over_every_path_all_three_give_the_targets_own_value():
    log, rewards, q, v = population()
    expected = float(
        sum(probability * int(2 * sum(earned(p))) for probability, p in paths(TARGET)) / 2
    )

    assert per_decision(log, rewards).value == pytest.approx(expected, abs=1e-12)
    assert self_normalised(log, rewards).value == pytest.approx(expected, abs=1e-12)
    assert doubly_robust(log, rewards, q, v).value == pytest.approx(expected, abs=1e-12)
    assert log.cumulative.mean(axis=0) == pytest.approx(1.0, abs=1e-12)


def test_plain_loops_give_the_same():
    random = np.random.default_rng(5)
    ratios, rewards = random.exponential(size=(40, 3)), random.normal(size=(40, 4))
    log = sampled(ratios)
    plain, shares = 0.0, 0.0
    for t in range(4):
        weights = [float(np.prod(ratios[i, :t])) for i in range(40)]
        terms = [weight * float(rewards[i, t]) for i, weight in enumerate(weights)]
        plain += sum(terms) / 40
        shares += sum(terms) / sum(weights)
    final = [float(np.prod(row)) for row in ratios]

    assert per_decision(log, rewards).value == pytest.approx(plain)
    found = self_normalised(log, rewards)
    assert found.value == pytest.approx(shares)
    assert found.effective == pytest.approx(sum(final) ** 2 / sum(w * w for w in final))
    assert effective_size(np.ones(7)) == 7
    assert effective_size(np.array([1.0, 0.0, 0.0])) == 1
    assert effective_size(np.zeros(3)) == 0


def test_the_errors_are_those_of_a_bootstrap_over_clusters():
    random = np.random.default_rng(6)
    log = simulate(random, 400, threshold=1.5, epsilon=0.4, target=1.0)
    clusters = np.arange(400, dtype=np.int64) // 2
    clustered = Log(
        ratios=log.log.ratios,
        tilted=log.log.tilted,
        presence=log.log.presence,
        clusters=clusters,
    )
    drawn: list[tuple[float, float]] = []
    for _ in range(400):
        rows = (2 * random.integers(0, 200, 200)[:, None] + np.arange(2)).ravel()
        again = sampled(clustered.ratios[rows])
        drawn.append(
            (
                per_decision(again, log.calls[rows]).value,
                self_normalised(again, log.calls[rows]).value,
            )
        )
    spread = np.std(drawn, axis=0)

    assert per_decision(clustered, log.calls).error == pytest.approx(spread[0], rel=0.12)
    assert self_normalised(clustered, log.calls).error == pytest.approx(spread[1], rel=0.12)


@given(st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_a_constant_is_estimated_without_error(constant: float, seed: int):
    random = np.random.default_rng(seed)
    log = sampled(random.exponential(size=(20, 2)) + 1e-3)
    rewards = np.zeros((20, 3))
    rewards[:, 2] = constant

    found = self_normalised(log, rewards)

    assert found.value == pytest.approx(constant)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_an_outcome_that_never_varies_is_not_taken_for_certain():
    found = mean_estimate(np.ones(20), np.arange(20), bounds=(0.0, 1.0))

    assert (found.value, found.upper) == (1.0, 1.0)
    assert found.lower == pytest.approx(stats.binomtest(20, 20).proportion_ci(0.95).low)
    below = mean_estimate(np.zeros(20), np.arange(20), bounds=(0.0, 1.0))
    assert below.upper == pytest.approx(stats.binomtest(0, 20).proportion_ci(0.95).high)
    alone = mean_estimate(np.ones(1), np.zeros(1, dtype=np.int64), bounds=(0.0, 1.0))
    assert (alone.lower, alone.upper) == (0.0, 1.0)


@pytest.mark.parametrize("freedom", [3, 5, 10, 30, 200])
@pytest.mark.parametrize("p", [0.9, 0.95, 0.975])
def test_students_quantile(p: float, freedom: int):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=2e-3)


@pytest.mark.parametrize("target", [0.5, 1.0, 2.2])
def test_intervals_cover_the_truth_of_simulated_logs(target: float):
    """95 % intervals over 240 logs of 200 trajectories, the least effective size about 65."""
    calls, outcome = truth(target, 400_000)
    covered: list[bool] = []
    widths: list[tuple[float, float]] = []
    for seed in range(240):
        random = np.random.default_rng(seed)
        found = simulate(random, 200, threshold=1.5, epsilon=0.3, target=target)
        for rewards, bounds, true in (
            (found.calls, UNBOUNDED, calls),
            (found.outcome, (0.0, 1.0), outcome),
        ):
            q, v = fit(found.log, rewards, found.states, found.taken, found.target)
            robust = doubly_robust(found.log, rewards, q, v, bounds=bounds)
            plain = self_normalised(found.log, rewards, bounds=bounds)
            covered.append(robust.lower <= true <= robust.upper)
            widths.append((width(robust), width(plain)))

    assert np.mean(covered) >= 0.93
    robust_width, plain_width = np.mean(widths, axis=0)
    assert robust_width < 0.95 * plain_width  # the model is worth its while


def width(found: Estimate) -> float:
    return found.upper - found.lower


def test_masked_calls_weighed_as_sampled_ones_would_bias_the_estimate():
    """What `presence` is for: without it a policy that suppresses less seems to call more."""
    calls, _ = truth(0.5, 400_000)
    found = simulate(np.random.default_rng(8), 60_000, threshold=1.5, epsilon=0.3, target=0.5)
    log = found.log
    masked = (log.presence > 0) & (log.presence < 1)
    naive = sampled(np.where(masked, log.tilted / np.where(masked, log.presence, 1), log.ratios))

    right, wrong = self_normalised(log, found.calls), self_normalised(naive, found.calls)

    assert right.lower < calls < right.upper
    assert not wrong.lower < calls < wrong.upper


def test_what_is_no_log_is_refused():
    fine = sampled(np.ones((3, 2)))
    with pytest.raises(ValueError, match="one shape"):
        Log(
            ratios=np.ones((3, 2)),
            tilted=np.ones((3, 1)),
            presence=np.ones((3, 2)),
            clusters=np.arange(3),
        )
    with pytest.raises(ValueError, match="2 clusters for 3"):
        sampled(np.ones((3, 2)), np.arange(2))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            sampled(np.full((3, 2), bad))
    with pytest.raises(ValueError, match="probability"):
        Log(
            ratios=np.ones((3, 2)),
            tilted=np.ones((3, 2)),
            presence=np.full((3, 2), 1.5),
            clusters=np.arange(3),
        )
    with pytest.raises(ValueError, match=r"want \(3, 3\)"):
        self_normalised(fine, np.ones((3, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        self_normalised(fine, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="shape of the ratios"):
        doubly_robust(fine, np.ones((3, 3)), np.ones((3, 1)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="goes on as the policy would"):
        self_normalised(sampled(np.zeros((3, 2))), np.ones((3, 3)))
    with pytest.raises(ValueError, match="confidence"):
        self_normalised(fine, np.ones((3, 3)), confidence=95)


def test_every_sequence_of_ratios_keeps_its_own_order():
    """ρ_t is the product up to t, not of all."""
    for row in itertools.product((0.0, 0.5, 2.0), repeat=3):
        log = sampled(np.array([row]))
        expected = [1.0, row[0], row[0] * row[1], row[0] * row[1] * row[2]]
        assert log.cumulative[0].tolist() == expected
        assert log.weights.tolist() == expected[-1:]


def test_a_value_beyond_what_is_possible_is_clipped_like_its_interval():
    """A doubly robust estimate adds corrections and may pass 1."""
    log = sampled(np.full((20, 1), 1.002))
    rewards = np.zeros((20, 2))
    rewards[:, 1] = 1.0

    found = per_decision(log, rewards, bounds=(0.0, 1.0))

    assert found.value == 1.0
    assert found.lower <= found.value <= found.upper

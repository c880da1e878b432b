"""The experiments on a calibrated policy's promise, on samples whose truth is known."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from entrogate.calibrate.choose import calibrate
from entrogate.calibrate.paired import CallTurn, Sample, Shadow
from entrogate.calibrate.result import Options
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Policy, Statistic
from entrogate.types import Estimator, Features, Interval, SegmentStats
from entrogate_lab.almanac.promise.comparing import compare, difference, predict
from entrogate_lab.almanac.promise.holding import Draw, Holding, Realised, hold
from entrogate_lab.almanac.promise.ranking import rank

MAX_ONLY = Options(max_loss=0.1, delta=0.2, signals=(Statistic.ENTROPY_MAX,))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("balanced")


def _point(value: float) -> Interval:
    return Interval(lower=value, upper=value)


def _call(entropy: float, mean: float | None = None, calls_before: int = 0) -> Features:
    segment = SegmentStats(
        start=0,
        stop=9,
        n_tokens=9,
        estimator=Estimator.EXACT,
        mean=_point(entropy if mean is None else mean),
        max=_point(entropy),
        tail_mean=_point(entropy),
        last_window=_point(entropy),
        margin_mean=1.0,
        margin_min=0.1,
        p_tool_call=0.9,
    )
    return Features(
        tool="lookup",
        segment=segment,
        capture_complete=True,
        tool_choice="auto",
        repeats=0,
        replayable=False,
        calls_before=calls_before,
        tool_calls_before=calls_before,
        parallel_calls=1,
        replays_in_turn=0,
        draw=0.5,
    )


def _sample(name: str, turns: list[tuple[float, bool]], *, right: bool) -> Sample:
    """Turns as (entropy, is the answer without the call right)."""
    return Sample(
        trajectory_id=name,
        task_id=name,
        outcome=float(right),
        turns=tuple(
            CallTurn(features=(_call(entropy, calls_before=at),), shadow=Shadow(score=float(known)))
            for at, (entropy, known) in enumerate(turns)
        ),
    )


def _pool(count: int, *, noise: float) -> list[Sample]:
    """Half of the beliefs are right; entropy is low there, but for some noise."""
    rng = random.Random(7)
    pool: list[Sample] = []
    for number in range(count):
        turns: list[tuple[float, bool]] = []
        for _ in range(rng.randint(1, 3)):
            known = rng.random() < 0.5
            entropy = (0.5 if known else 2.0) + rng.uniform(-noise, noise)
            turns.append((entropy, known))
        pool.append(_sample(f"t{number}", turns, right=rng.random() < 0.8))
    return pool


def _quiet(done: int, total: int) -> None:
    assert done <= total


def test_a_signal_that_tells_all_saves_what_is_known_and_keeps_its_promise(policy: Policy):
    pool = _pool(200, noise=0.1)
    found = hold(
        pool, policy, MAX_ONLY, draw=Draw.POPULATION, size=150, rounds=5, seed=0, report=_quiet
    )
    known = [sample.turns[0].shadow and sample.turns[0].shadow.is_right for sample in pool]
    for each in found.rounds:
        assert each.saved > 0.3 * sum(map(bool, known)) / len(known)
        assert each.judged_on == 200
    assert found.exceeded <= 3  # of 5, each with probability 0.2 at most
    assert found.holds


def test_many_calibrations_break_their_promise_no_more_often_than_allowed(policy: Policy):
    found = hold(
        _pool(300, noise=1.1),
        policy,
        MAX_ONLY,
        draw=Draw.POPULATION,
        size=160,
        rounds=40,
        seed=1,
        report=_quiet,
    )
    losses = [each.loss for each in found.rounds]
    assert max(losses) > 0.03  # the noise does make it lose
    assert found.holds
    assert found.summary()["certified"] > 25


def test_the_realised_loss_is_that_of_the_policy_on_those_not_drawn(policy: Policy):
    pool = _pool(300, noise=1.1)
    found = hold(pool, policy, MAX_ONLY, draw=Draw.SPLIT, size=200, rounds=3, seed=2, report=_quiet)
    for number, each in enumerate(found.rounds):
        order = random.Random(f"promise-2-{number}").sample(range(300), 300)
        drawn, rest = [pool[at] for at in order[:200]], [pool[at] for at in order[200:]]
        assert each.judged_on == 100
        chosen = calibrate(drawn, policy, replace(MAX_ONLY, seed=number)).policy
        assert (chosen is None) == (each.threshold is None)
        if each.threshold is None:
            continue
        lost = saved = calls = 0
        for sample in rest:
            calls += len(sample.turns)
            for at, turn in enumerate(sample.turns):
                segment, shadow = turn.features[0].segment, turn.shadow
                assert segment is not None
                assert shadow is not None
                if segment.max.upper < each.threshold:
                    lost += sample.is_right and shadow.score < 0.5
                    saved += len(sample.turns) - at
                    break
        assert each.loss == pytest.approx(lost / 100)
        assert each.saved == pytest.approx(saved / calls)


@pytest.mark.parametrize("draw", Draw)
def test_policies_can_be_judged_on_a_log_that_no_calibration_draws(policy: Policy, draw: Draw):
    pool, fresh = _pool(150, noise=1.1), _pool(150, noise=0.1)[:40]
    found = hold(
        pool, policy, MAX_ONLY, draw=draw, size=150, rounds=3, seed=0, report=_quiet, fresh=fresh
    )
    assert any(each.threshold is not None for each in found.rounds)
    for each in found.rounds:
        assert each.judged_on == 40
        if each.threshold is None:
            continue
        lost = 0
        for sample in fresh:
            for turn in sample.turns:
                segment, shadow = turn.features[0].segment, turn.shadow
                assert segment is not None
                assert shadow is not None
                if segment.max.upper < each.threshold:
                    lost += sample.is_right and shadow.score < 0.5
                    break
        assert each.loss == pytest.approx(lost / 40)


def test_a_split_needs_something_left_to_judge_on(policy: Policy):
    with pytest.raises(ValueError, match=r"50 of 50 trajectories leave none to judge on"):
        hold(
            _pool(50, noise=0.1),
            policy,
            MAX_ONLY,
            draw=Draw.SPLIT,
            size=50,
            rounds=1,
            seed=0,
            report=_quiet,
        )


@pytest.mark.parametrize("broken", [0, 20, 26, 27, 40])
def test_the_count_is_judged_by_the_binomial_tail(broken: int):
    stats = pytest.importorskip("scipy.stats")
    losses = [0.06] * broken + [0.05] * (200 - broken)
    rounds = tuple(
        Realised(
            signal="entropy_max", threshold=1.0, loss=loss, gain=0.0, saved=0.5, judged_on=1000
        )
        for loss in losses
    )
    found = Holding(
        draw=Draw.POPULATION, pool=1000, size=500, max_loss=0.05, delta=0.1, rounds=rounds
    )
    assert found.exceeded == broken
    assert found.p_value == pytest.approx(stats.binom.sf(broken - 1, 200, 0.1), abs=1e-9)
    assert found.holds == (found.p_value >= 0.05)


def test_signals_are_ranked_by_how_well_they_tell(policy: Policy):
    rng = random.Random(3)
    pool = []
    for number in range(200):
        known = rng.random() < 0.5
        good = (0.5 if known else 2.0) + rng.uniform(-0.2, 0.2)
        turn = CallTurn(
            features=(_call(rng.uniform(0, 2), mean=good),), shadow=Shadow(score=float(known))
        )
        pool.append(
            Sample(trajectory_id=str(number), task_id=str(number), outcome=1.0, turns=(turn,))
        )
    options = replace(MAX_ONLY, signals=(Statistic.ENTROPY_MAX, Statistic.ENTROPY_MEAN))
    ranked = rank(pool, policy, options)
    assert [row["signal"] for row in ranked] == ["entropy_mean", "entropy_max"]
    assert ranked[0]["auc"] == 1.0
    assert ranked[0]["saved"] > 0.4
    low, high = ranked[1]["auc_ci"]
    assert low < 0.5 < high


def _record(task: int, *, correct: bool, calls: int) -> dict[str, Any]:
    return {
        "task_id": f"t{task}",
        "trajectory_id": f"t{task}",
        "correct": correct,
        "calls": [{}] * calls,
        "turns": calls + 1,
    }


def test_a_policy_is_predicted_from_the_first_turn_that_it_would_suppress(policy: Policy):
    samples = [
        _sample("t0", [(2.5, False), (0.2, True)], right=False),  # ends at the second turn, right
        _sample("t1", [(0.2, False), (0.2, True)], right=True),  # ends at the first, wrong
        _sample("t2", [(2.5, False)], right=True),  # goes on as observed
    ]
    records = [
        _record(0, correct=False, calls=2),
        _record(1, correct=True, calls=2),
        _record(2, correct=True, calls=1),
        _record(3, correct=True, calls=0),
        _record(4, correct=True, calls=1),  # has no sample: left out
    ]
    told = predict(policy, samples, records)
    assert {task: (each.right, each.calls) for task, each in told.items()} == {
        "t0": (True, 1),
        "t1": (False, 0),
        "t2": (True, 1),
        "t3": (True, 0),
    }
    enforced = [
        _record(0, correct=True, calls=1),
        _record(1, correct=False, calls=0),
        _record(2, correct=True, calls=1),
        _record(3, correct=True, calls=0),
        _record(4, correct=False, calls=1),
    ]
    found = compare(policy, samples, records, enforced)
    assert found["tasks"] == 5
    assert found["with_shadow"] == 4
    assert found["accuracy"] == {
        "observed": pytest.approx(0.8),
        "predicted": pytest.approx(0.75),
        "enforced": pytest.approx(0.6),
    }
    assert found["accuracy_against_predicted"] == {"n": 4, "mean": 0.0, "ci": [0.0, 0.0]}
    assert found["accuracy_against_observed"]["mean"] == pytest.approx(-0.2)
    assert found["calls"]["saved"] == pytest.approx(0.5)
    assert found["lost"] == pytest.approx(0.4)
    assert found["gained"] == pytest.approx(0.2)


def test_a_paired_interval_is_the_normal_one_of_the_differences():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(0)
    pairs = [(rng.random(), rng.random()) for _ in range(400)]
    found = difference(pairs)
    each = [second - first for first, second in pairs]
    error = stats.sem(each)
    assert found.mean == pytest.approx(sum(each) / 400)
    assert (found.upper - found.lower) / 2 == pytest.approx(1.959964 * error, rel=1e-5)
    assert found.holds_zero == (abs(found.mean) <= 1.959964 * error)

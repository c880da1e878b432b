"""Trajectories with shadows in pairs, against runs of the policy in a simulated world."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from entrogate.calibrate.evaluate_cli import report_lines
from entrogate.calibrate.left_out import LeftOut
from entrogate.gate import parse_policy
from entrogate.gate.decide import decide_turn
from entrogate.store.read.logged import LoggedTrajectory
from entrogate.types import Mode
from tests.unit.calibrate.evaluating import (
    EXPLORING,
    called,
    observed,
    pair,
    report,
    shadow,
)
from tests.unit.calibrate.logs import call, log, logged, means, threshold, turn
from tests.unit.gate.factory import features, segment


def test_intervals_of_pairs_cover_what_the_policy_does():
    """Over 200 observed logs, of the trajectories in which a call was proposed."""
    policy = threshold(2.0)
    many = [each for each in log(99, 6000, EXPLORING, Mode.OBSERVE, shadows=True) if called(each)]
    pairs = [found for each in many if (found := pair(each, policy, Mode.ENFORCE)) is not None]
    true = {
        metric: sum(each.expected[metric] for each in pairs) / len(pairs)
        for metric in ("calls", "tokens", "seconds", "outcome")
    }
    covered = 0
    for seed in range(200):
        trajectories = log(seed, 120, EXPLORING, Mode.OBSERVE, shadows=True)
        (model,) = report(trajectories, policy).models
        assert model.observed is not None
        for metric, own in model.observed.compared.items():
            covered += own.policy.lower <= true[metric] <= own.policy.upper
    assert covered / 800 >= 0.93


def test_pairs_expect_what_enforcing_does():
    """Two routes: a shadow ends an observed trajectory, and the policy runs itself."""
    policy = threshold(2.0)
    observed = [
        each for each in log(7, 6000, EXPLORING, Mode.OBSERVE, shadows=True) if called(each)
    ]
    pairs = [found for each in observed if (found := pair(each, policy, Mode.ENFORCE)) is not None]
    # What the engine masks need not have been a call: run as where the gateway alone decides.
    ran = [each for each in log(8, 6000, policy, Mode.ENFORCE, engine=False) if called(each)]
    plain = means(ran)
    for metric, spread in (("calls", 1.0), ("outcome", 0.5)):
        expected = sum(each.expected[metric] for each in pairs) / len(pairs)
        error = spread * math.sqrt(1 / len(pairs) + 1 / len(ran))
        assert expected == pytest.approx(plain[metric], abs=3.5 * error)


@pytest.mark.parametrize("value", [0.3, 2.0])
def test_shadows_of_a_share_of_the_traffic_say_the_same(value: float):
    """What is compared must not depend on what the policy does: a trajectory that it leaves alone
    counts only where one that it ends would have."""
    policy = threshold(value)
    many = [each for each in log(5, 4000, EXPLORING, Mode.OBSERVE, shadows=True) if called(each)]
    sampled = [each if n % 5 == 0 else without_shadows(each) for n, each in enumerate(many)]
    (whole,) = report(many, policy).models
    (part,) = report(sampled, policy).models
    assert whole.observed is not None
    assert part.observed is not None
    assert part.observed.n == len(many[::5])
    for metric in ("calls", "outcome"):
        true, own = whole.observed.compared[metric], part.observed.compared[metric]
        assert own.policy.lower < true.policy.value < own.policy.upper
        assert own.observed.lower < true.observed.value < own.observed.upper


def test_outcomes_count_only_where_every_shadow_has_a_score():
    """As when trajectories that went wrong have none: those that the policy leaves alone too."""
    policy = threshold(2.0)
    many = [each for each in log(6, 2000, EXPLORING, Mode.OBSERVE, shadows=True) if called(each)]
    partly = [each if each.scores == (1.0,) else unscored(each) for each in many]
    (found,) = report(partly, policy).models
    assert found.observed is not None
    assert found.observed.n == len(many)
    assert found.observed.n_outcomes == sum(each.scores == (1.0,) for each in many)
    assert found.observed.compared["outcome"].observed.value == 1.0


def test_calls_that_the_policy_cannot_suppress_need_no_shadow_and_say_nothing():
    bare = observed(1.0, shadow_=None)
    (asking,) = bare.turns[:1]
    (one,) = asking.calls
    writing = replace(one, features=replace(one.features, tool="write"))
    other = replace(bare, turns=(replace(asking, calls=(writing,)), *bare.turns[1:]))
    found = report([other] * 3 + [observed(1.0)], threshold(1.5))
    assert found.left_out == {LeftOut.NOT_GATED: 3}


def without_shadows(trajectory: LoggedTrajectory) -> LoggedTrajectory:
    return replace(trajectory, turns=tuple(replace(turn, shadow=None) for turn in trajectory.turns))


def unscored(trajectory: LoggedTrajectory) -> LoggedTrajectory:
    turns = [
        replace(turn, shadow=turn.shadow and replace(turn.shadow, score=None))
        for turn in trajectory.turns
    ]
    return replace(trajectory, turns=tuple(turns))


def test_the_first_suppressed_call_ends_a_trajectory():
    found = pair(observed(2.0, 1.0, 1.0), threshold(1.5), Mode.ENFORCE)
    assert found is not None
    assert found.observed == {"calls": 3, "tokens": 80, "seconds": 2.0, "outcome": 0.0}
    assert found.expected["calls"] == 1
    assert found.expected["tokens"] == 20 + 10 + 5
    assert found.expected["seconds"] == pytest.approx(0.5 + 0.25 + 0.1)
    assert (found.expected["outcome"], found.lost, found.gained) == (1.0, 0.0, 1.0)


def test_what_is_lost_and_what_calls_again():
    lost = pair(observed(1.0, score=1.0, shadow_=shadow(called=True)), threshold(1.5), Mode.ENFORCE)
    assert lost is not None
    assert (lost.lost, lost.gained, lost.called_again) == (1.0, 0.0, 1.0)
    kept = pair(observed(2.0, score=1.0), threshold(1.5), Mode.ENFORCE)
    assert kept is not None
    assert (kept.lost, kept.called_again, kept.expected) == (0.0, 0.0, kept.observed)


def test_a_random_policy_is_an_expectation():
    chance = parse_policy(
        "schema_version: 1\nname: c\nsignal: {statistic: uniform}\n"
        "tools: {lookup: {threshold: 0.25}}\n",
        "c.yaml",
    )
    found = pair(observed(1.0, 1.0), chance, Mode.ENFORCE)
    assert found is not None
    assert found.expected["calls"] == pytest.approx(0.75 + 0.75**2)
    assert found.expected["outcome"] == pytest.approx(1 - 0.75**2)


def test_replays_cost_no_call_and_end_after_two():
    turns = []
    for number in range(4):
        seen = features(
            segment=segment(2.0, width=0.0),
            repeats=min(number, 1),
            replayable=number > 0,
            calls_before=number,
            tool_calls_before=number,
        )
        decision = decide_turn(EXPLORING, Mode.OBSERVE, [seen])[0]
        turns.append(turn(call(seen, decision), request_id=f"{number}", shadow=shadow()))
    found = pair(logged(*turns, score=0.0), threshold(1.5, "replay"), Mode.ENFORCE)
    assert found is not None
    assert found.expected["calls"] == 1
    assert found.gained == 1.0  # the third repeat in a row is suppressed


def test_missing_and_unjudged_shadows():
    bare = observed(1.0, shadow_=None)
    assert pair(bare, threshold(1.5), Mode.ENFORCE) is None
    assert pair(bare, threshold(0.5), Mode.ENFORCE) is None  # though nothing is suppressed
    unjudged = pair(observed(1.0, shadow_=shadow(score=None)), threshold(1.5), Mode.ENFORCE)
    assert unjudged is not None
    assert (unjudged.lost, unjudged.gained) == (None, None)
    assert "outcome" not in unjudged.expected
    some = [bare] * 60 + [observed(1.0)] * 9
    found = report(some, threshold(1.5))
    assert found.left_out[LeftOut.NO_SHADOW] == 60
    assert not found.answered
    assert "--shadow-share" in "\n".join(report_lines(found))

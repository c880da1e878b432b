"""What a policy that never ran is said to do, against its own runs in a simulated world."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from entrogate.calibrate.by_weights import Asked, weigh
from entrogate.calibrate.evaluate_cli import report_lines
from entrogate.calibrate.left_out import LeftOut
from entrogate.gate import parse_policy
from entrogate.gate.decide import decide_turn
from entrogate.types import Action, Mode
from tests.unit.calibrate.evaluating import (
    EXPLORING,
    REPLAYING,
    explored_of,
    report,
)
from tests.unit.calibrate.logs import call, log, logged, means, threshold, turn
from tests.unit.gate.factory import features, segment


@pytest.mark.parametrize("value", [1.2, 2.4])
def test_intervals_of_an_explored_log_cover_what_the_policy_does(value: float):
    """95 % intervals of the logs, at least 200, that are not refused."""
    policy = threshold(value)
    true = means(log(12345, 6000, policy, Mode.ENFORCE))
    covered = {"calls": 0, "tokens": 0, "seconds": 0, "outcome": 0}
    answered = 0
    for seed in range(235):
        trajectories = log(seed, 220, EXPLORING, Mode.EXPLORE)
        found = explored_of(report(trajectories, policy))
        answered += found.refused is None
        for metric, own in found.estimates.items():
            covered[metric] += own.doubly_robust.lower <= true[metric] <= own.doubly_robust.upper
    assert answered >= 200
    assert sum(covered.values()) / (4 * answered) >= 0.93
    assert min(covered.values()) / answered >= 0.92


def test_a_policy_is_estimated_as_what_it_logged():
    """Every weight is 1 under the policy that explored."""
    trajectories = log(3, 100, EXPLORING, Mode.EXPLORE)
    found = explored_of(report(trajectories, EXPLORING, mode=Mode.EXPLORE))
    assert found.effective == pytest.approx(100)
    for metric, expected in means(trajectories).items():
        own = found.estimates[metric]
        for value in (own.logged, own.self_normalised, own.per_decision):
            assert value.value == pytest.approx(expected)
        robust = own.doubly_robust  # the model behind it sees the actions, so it may differ
        assert robust.lower < expected < robust.upper


def test_weights_are_products_of_ratios():
    policy = threshold(0.5)
    uncertain, certain = (
        features(segment=segment(2.0, width=0.0)),
        features(segment=segment(1.0, width=0.0)),
    )
    masked = replace(certain, p_sampled=0.25)
    decisions = [decide_turn(EXPLORING, Mode.EXPLORE, [f])[0] for f in (uncertain, masked)]
    allowed = replace(decisions[0], applied=Action.ALLOW, propensity=0.7)
    suppressed = replace(decisions[1], applied=Action.SUPPRESS, propensity=0.7)
    trajectory = logged(
        turn(call(uncertain, allowed), request_id="1"),
        turn(call(masked, suppressed, "(unsampled)"), request_id="2"),
        score=1.0,
    )
    asked = Asked(policy=policy, mode=Mode.ENFORCE, policies=lambda _: EXPLORING)
    weighed = weigh([trajectory], asked)
    assert weighed.log.ratios.tolist() == [pytest.approx([1 / 0.7, 0.75])]
    assert weighed.log.presence.tolist() == [[1.0, 0.25]]
    assert weighed.rewards["calls"].tolist() == [[0.0, 1.0, 0.0]]
    assert weighed.rewards["outcome"].tolist() == [[0.0, 0.0, 1.0]]


def test_one_draw_for_a_replay_and_what_followed_counts_once():
    """As an older gateway recorded it: the second decision was no new chance."""
    seen = features(segment=segment(2.0, width=0.0), repeats=1, replayable=True)
    decision = replace(
        decide_turn(REPLAYING, Mode.EXPLORE, [seen])[0], applied=Action.REPLAY, propensity=0.7
    )
    twice = (turn(call(seen, decision)), turn(call(seen, decision)))
    asked = Asked(policy=REPLAYING, mode=Mode.ENFORCE, policies=lambda _: REPLAYING)
    assert weigh([logged(*twice)], asked).log.ratios.tolist() == [pytest.approx([1 / 0.7, 1.0])]


def test_few_trajectories_are_refused_with_what_it_would_take():
    found = explored_of(report(log(1, 10, EXPLORING, Mode.EXPLORE), threshold(0.8)))
    assert found.refused is not None
    assert "the effective sample size of 10 explored trajectories is" in found.refused
    assert "want at least 50" in found.refused
    assert "more trajectories are needed" in found.refused
    assert not found.estimates


def test_what_the_log_never_tried_is_refused():
    """The exploring policy does not name the tool, so no call of it was ever suppressed."""
    trajectories = log(1, 200, EXPLORING, Mode.EXPLORE)
    other = parse_policy("schema_version: 1\nname: other\n", "other.yaml")
    found = explored_of(report(trajectories, threshold(0.8), logging=other))
    assert found.refused is not None
    assert "the logging policy never did" in found.refused


def test_exploring_a_replay_does_not_tell_what_suppressing_it_would_do():
    trajectories = log(1, 200, REPLAYING, Mode.EXPLORE)
    found = explored_of(report(trajectories, threshold(2.5, "replay"), logging=REPLAYING))
    assert found.refused is not None
    assert "suppress a repeat that it replays" in found.refused
    assert not any("count as if it had not" in warning for warning in found.warnings)


def test_forcing_cannot_be_evaluated():
    forcing = parse_policy(
        "schema_version: 1\nname: f\ntools: {lookup: }\nforce: {tool: lookup, threshold: 2.0}\n",
        "f.yaml",
        can_force=True,
    )
    found = explored_of(report(log(1, 200, EXPLORING, Mode.EXPLORE), forcing))
    assert found.refused is not None
    assert "'force'" in found.refused


def test_without_outcomes_the_rest_is_estimated():
    trajectories = [replace(each, scores=()) for each in log(1, 200, EXPLORING, Mode.EXPLORE)]
    found = explored_of(report(trajectories, threshold(1.2)))
    assert set(found.estimates) == {"calls", "tokens", "seconds"}
    assert any("/v1/feedback" in warning for warning in found.warnings)


def test_one_class_of_outcomes_is_no_certainty():
    trajectories = [replace(each, scores=(1.0,)) for each in log(1, 200, EXPLORING, Mode.EXPLORE)]
    found = explored_of(report(trajectories, threshold(1.2)))
    own = found.estimates["outcome"].doubly_robust
    assert own.value == pytest.approx(1.0)
    assert own.lower < 0.99
    assert any("every known outcome is right" in warning for warning in found.warnings)


def test_models_and_modes_are_told_apart():
    explored = log(1, 120, EXPLORING, Mode.EXPLORE)
    other = [
        replace(each, turns=tuple(replace(turn, model="other") for turn in each.turns))
        for each in log(2, 120, EXPLORING, Mode.EXPLORE)
    ]
    enforced = [each for each in log(3, 40, EXPLORING, Mode.ENFORCE) if each.turns[0].calls]
    mixed = [logged(*explored[0].turns, *other[0].turns, name="mixed")]
    found = report([*explored, *other, *enforced, *mixed], threshold(1.2))
    assert [model.model for model in found.models] == ["m", "other"]
    assert found.left_out[LeftOut.ENFORCED] == len(enforced)
    assert found.left_out[LeftOut.MIXED_WEIGHTS] == 1
    only = report([*explored, *other], threshold(1.2), model="other")
    assert [model.model for model in only.models] == ["other"]
    assert only.left_out[LeftOut.OTHER] == 120


def test_unusable_trajectories_are_counted():
    fine = log(1, 120, EXPLORING, Mode.EXPLORE)
    called = next(each for each in fine if each.turns[0].calls)
    first = called.turns[0]
    broken = replace(first.calls[0], decision=replace(first.calls[0].decision, propensity=math.nan))
    bad = [
        replace(called, fault="not the features of a call"),
        replace(called, turns=(replace(first, calls=(broken,)),)),
        replace(called, turns=(replace(first, duration_seconds=math.nan),)),
        replace(called, scores=(math.nan,)),
        replace(called, incomplete_reason="error: the upstream failed"),
        replace(called, scores=(0.0, 1.0)),
        replace(called, turns=()),
    ]
    found = report([*fine, *bad], threshold(1.2))
    assert found.left_out == {
        LeftOut.UNREADABLE: 4,
        LeftOut.BROKEN_OFF: 2,
        LeftOut.CONTRADICTORY: 1,
    }
    assert explored_of(found).n == 120


def test_a_quiet_trajectory_belongs_to_what_was_going_on():
    explored = [replace(each, created_at=10.0) for each in log(1, 60, EXPLORING, Mode.EXPLORE)]
    explored = [each for each in explored if each.turns[0].calls]
    observed = [
        replace(each, created_at=20.0)
        for each in log(2, 60, EXPLORING, Mode.OBSERVE, shadows=True)
        if each.turns[0].calls
    ]
    quiet = [logged(turn(), name=f"q{at}", created_at=at) for at in (5.0, 15.0, 25.0, 26.0)]
    found = report([*observed, *quiet, *explored], threshold(1.2), least_effective=5)
    (model,) = found.models
    assert model.explored is not None
    assert model.explored.n == len(explored) + 2
    assert found.left_out[LeftOut.NO_CALLS] == 2


def test_a_report_can_be_read_by_programs():
    found = report(log(1, 200, EXPLORING, Mode.EXPLORE), threshold(1.2))
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["models"][0]["explored"]["estimates"]["calls"]["doubly_robust"]["value"] > 0
    text = "\n".join(report_lines(found))
    assert "effective sample size" in text
    assert "as logged" in text


def test_a_log_that_lacks_what_the_policy_would_do_is_refused():
    """Without the trajectories of large weight the others stand for all, and are not like them."""
    policy = threshold(0.9)
    whole = log(5, 500, EXPLORING, Mode.EXPLORE)
    asked = Asked(policy=policy, mode=Mode.ENFORCE, policies=lambda _: EXPLORING)
    weights = weigh(whole, asked).log.weights
    order = sorted(range(500), key=lambda at: -weights[at])

    def without(count: int):
        return explored_of(report([whole[at] for at in order[count:]], policy))

    complete, fewer, hollow = (without(count) for count in (0, 20, 60))
    assert complete.refused is None
    assert complete.mean_weight.lower < 1.0 < complete.mean_weight.upper
    assert not any("mean weight" in each for each in complete.warnings)
    assert any("mean weight" in each for each in fewer.warnings)
    assert hollow.mean_weight.value == pytest.approx(sum(weights[order[60:]]) / 440)
    assert hollow.refused is not None
    assert "mean weight" in hollow.refused
    assert not hollow.estimates

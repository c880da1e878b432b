"""Calibration as a whole: against the gate's own decisions, and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from entrogate.calibrate.choose import Pool, calibrate
from entrogate.calibrate.crossings import cross, curve
from entrogate.calibrate.paired import CallTurn, Sample, Shadow, one_per_task, split, under
from entrogate.calibrate.result import NEARLY, Options
from entrogate.calibrate.rules import with_threshold
from entrogate.gate.schema import Signal, Statistic
from tests.unit.calibrate.world import features, policy, samples, segment

PLAIN = (Statistic.ENTROPY_MEAN, Statistic.ENTROPY_MAX, Statistic.MARGIN_MEAN)


@pytest.mark.parametrize("statistic", [Statistic.ENTROPY_MEAN, Statistic.LOGPROB_SUM])
def test_curves_are_what_the_gate_itself_would_have_done(statistic: Statistic):
    """Every level of a curve against `decide_turn` at that threshold, call by call."""
    base = policy()
    signal = Signal(statistic=statistic)
    sign = -1.0 if signal.statistic.certain_when_above else 1.0
    made = samples(60, 3, tools=("search", "read"))
    levels = np.linspace(*((-21, 1) if sign < 0 else (-0.1, 2.2)), 23)

    found = curve(cross(made, base, signal, ["search", "read"]), sign * levels[:: int(sign)])

    for at, level in enumerate(levels[:: int(sign)]):
        gated = with_threshold(base, ["search", "read"], signal, float(level))
        ended = [under(gated, sample) for sample in made]
        assert found.losses[at] == sum(each.loss for each in ended)
        assert found.gains[at] == sum(each.gain for each in ended)
        calls = sum(sample.n_calls for sample in made)
        assert found.saved[at] == pytest.approx(sum(each.saved for each in ended) / calls)
    assert found.losses.max() > 3


def test_what_budgets_suppress_is_part_of_the_loss():
    base = policy("""
schema_version: 1
name: short
tools: {search: {max_calls: 1}}
""")
    wrong = Shadow(score=0.0)
    turns = tuple(
        CallTurn(features=(features(before=before, segment=segment(1.9)),), shadow=wrong)
        for before in range(2)
    )
    sample = Sample(trajectory_id="t", outcome=1.0, turns=turns)
    signal = Signal(statistic=Statistic.ENTROPY_MEAN)

    found = curve(cross([sample], base, signal, ["search"]), np.array([0.1, 2.0]))

    assert found.losses.tolist() == [1, 1]
    assert found.saved.tolist() == [0.5, 1.0]  # the second call by its budget, then both


def test_calls_of_a_turn_are_suppressed_together():
    base = policy()
    turn = CallTurn(
        features=(
            features("search", segment=segment(0.2)),
            features("read", segment=segment(0.9)),
        ),
        shadow=Shadow(score=0.0),
    )
    sample = Sample(trajectory_id="t", outcome=1.0, turns=(turn,))
    signal = Signal(statistic=Statistic.ENTROPY_MEAN)
    levels = np.array([0.5, 1.0])

    both = curve(cross([sample], base, signal, ["search", "read"]), levels)
    first = curve(cross([sample], base, signal, ["search", "read"], tool="search"), levels)
    second = curve(cross([sample], base, signal, ["search", "read"], tool="read"), levels)

    assert both.losses.tolist() == [0, 1]
    # On its own account a tool is charged as if the other one's calls were certain.
    assert first.losses.tolist() == [1, 1]
    assert second.losses.tolist() == [0, 0]  # a turn is charged to the tool of its first call


def test_the_signal_that_saves_most_is_chosen_and_the_useless_ones_are_not():
    found = calibrate(samples(800, 1), policy(), Options(signals=PLAIN))

    row = found.rows[0]
    assert row.signal is not None
    assert row.signal.statistic is Statistic.ENTROPY_MEAN
    assert row.threshold is not None
    assert 0.3 < row.threshold < 1.0
    assert found.total is not None
    assert (found.total.losses, found.total.gains) == (row.losses, row.gains)
    assert found.total.upper == row.upper <= 0.05
    assert found.total.saved == row.saved
    assert row.saved.lower < row.saved.value < row.saved.upper
    areas = {each.signal.statistic: each.auc for each in row.judged}
    mean, margin = areas[Statistic.ENTROPY_MEAN], areas[Statistic.MARGIN_MEAN]
    assert mean is not None
    assert margin is not None
    assert mean.lower > 0.75
    assert margin.lower < 0.5 < margin.upper


def test_the_policy_holds_the_certified_rules_and_keeps_the_rest():
    base = policy("""
schema_version: 1
name: mine
mode: explore
signal: {statistic: entropy_max, bound: midpoint, min_tokens: 3}
defaults: {threshold: 9.0, on_repeat: replay}
tools:
  search: {threshold: 8.0, max_calls: 5}
  read:
  fetch: {threshold: null}
  never_called:
  send: {side_effects: true}
""")
    found = calibrate(samples(400, 1, tools=("search", "read")), base, Options(signals=PLAIN))
    calibrated = found.policy

    assert calibrated is not None
    assert calibrated.name == "mine-calibrated"
    assert calibrated.mode == base.mode
    assert calibrated.signal == Signal(
        statistic=Statistic.ENTROPY_MEAN, bound="midpoint", min_tokens=3
    )
    rules = {name: calibrated.rule(name) for name in calibrated.tools}
    thresholds = {name: rule.threshold for name, rule in rules.items() if rule is not None}
    certified = found.rows[0].threshold
    assert thresholds == {
        "search": certified, "read": certified, "fetch": None, "never_called": None, "send": None,
    }  # fmt: skip
    search = rules["search"]
    assert search is not None
    assert search.max_calls == 5
    assert calibrated.version != base.version


def test_each_tool_gets_its_own_threshold_and_its_share_of_the_promise():
    made = samples(1600, 2, tools=("search", "read"))
    found = calibrate(made, policy(), Options(signals=PLAIN, per_tool=True))

    assert [row.tool for row in found.rows] == ["search", "read"]
    assert sum(row.max_loss for row in found.rows) == pytest.approx(0.05)
    assert [row.delta for row in found.rows] == [0.05, 0.05]
    assert found.policy is not None
    for row in found.rows:
        assert row.upper <= row.max_loss
        rule = found.policy.rule(str(row.tool))
        assert rule is not None
        assert rule.threshold == row.threshold
        assert rule.signal == row.signal
    assert found.total is not None
    assert found.total.losses <= sum(row.losses for row in found.rows)


def test_a_learned_signal_sees_what_no_statistic_shows():
    """Right where exactly one of two numbers is low cannot be learned by a line; a sum can."""
    random = np.random.default_rng(5)
    made: list[Sample] = []
    for number in range(900):
        first, second = random.uniform(0.0, 2.0, 2)
        right = random.random() < 1.0 / (1.0 + math.exp(8.0 * (first + second - 2.0)))
        seen = features(segment=segment(first), draft=segment(second))
        turn = CallTurn(features=(seen,), shadow=Shadow(score=float(right)))
        made.append(Sample(trajectory_id=f"t{number}", outcome=1.0, turns=(turn,)))

    found = calibrate(made, policy(), Options())

    row = found.rows[0]
    assert row.signal is not None
    assert row.signal.statistic is Statistic.LEARNED
    savings = {each.signal.statistic: each.chosen_saving for each in row.judged}
    best = max(saving for name, saving in savings.items() if name is not Statistic.LEARNED)
    assert savings[Statistic.LEARNED] > best + NEARLY
    assert found.total is not None
    assert found.total.losses == row.losses  # the same through the policy that was written


def test_too_few_trajectories_say_how_many_more_it_takes():
    found = calibrate(samples(10, 1), policy(), Options(signals=PLAIN))

    assert found.policy is None
    assert found.needs is not None
    assert found.rows[0].upper > 0.05
    more = calibrate(samples(10 + found.needs, 1), policy(), Options(signals=PLAIN))
    assert more.certified_on >= 45


def test_a_model_that_needs_every_call_is_told_so():
    """The answer without the call is always wrong, the trajectory always right."""
    made = [
        replace(
            sample,
            outcome=1.0,
            turns=tuple(replace(turn, shadow=Shadow(score=0.0)) for turn in sample.turns),
        )
        for sample in samples(400, 1)
    ]

    found = calibrate(made, policy(), Options(signals=PLAIN))

    row = found.rows[0]
    assert all(each.auc is None for each in row.judged)  # one class only
    # Almost nothing may be suppressed; what was certified holds on the certifying part.
    assert row.upper <= 0.05 or not row.certified
    assert found.total is None or found.total.saved.value < 0.05


def test_a_shadow_that_calls_again_is_wrong_and_counted():
    turn = CallTurn(
        features=(features(segment=segment(0.1)),), shadow=Shadow(score=1.0, called=True)
    )
    sample = Sample(trajectory_id="t", outcome=1.0, turns=(turn,))

    ended = under(policy(), sample)

    assert ended.loss
    assert ended.called_again
    assert not ended.right


@pytest.mark.parametrize(("field", "value"), [("max_loss", 0.0), ("delta", 1.0), ("delta", -1.0)])
def test_levels_outside_the_unit_interval_are_refused(field: str, value: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        replace(Options(), **{field: value})


def test_a_policy_that_gates_nothing_of_the_log_is_refused_by_name():
    with pytest.raises(ValueError, match="'mine' gates none of the tools that are called: fetch"):
        calibrate(samples(10, 1, tools=("fetch",)), policy(), Options())


@pytest.mark.parametrize("value", [math.nan, 1.5, -0.5])
def test_scores_that_are_none_are_refused(value: float):
    with pytest.raises(ValueError, match="want 0 … 1"):
        Shadow(score=value)
    with pytest.raises(ValueError, match="want 0 … 1"):
        replace(samples(1, 1)[0], outcome=value)


def test_no_task_is_in_both_parts_and_one_of_each_may_be_drawn():
    made = [
        replace(sample, task_id=f"task {number % 40}")
        for number, sample in enumerate(samples(120, 1))
    ]
    one, other = split(made, 0.5, seed=3)

    assert len(one) + len(other) == 120
    assert 58 <= len(one) <= 62
    assert sorted(one + other) == list(range(120))
    assert not {made[at].task_id for at in one} & {made[at].task_id for at in other}
    drawn = one_per_task([*made, *samples(3, 2)], seed=1)
    assert len(drawn) == 43
    assert len({each.task_id for each in drawn}) == 41  # 40 tasks, and none


def test_the_same_seed_gives_the_same_policy():
    made = samples(300, 1)
    first, again = (calibrate(made, policy(), Options(signals=PLAIN)) for _ in range(2))

    assert first.policy == again.policy
    assert first.rows[0].threshold == again.rows[0].threshold


def test_draws_with_replacement_count_as_often_as_they_come():
    pool = Pool(samples(200, 3, slope=4.0), policy())
    drawn = np.random.default_rng(2).choice(200, 400).tolist()

    found = pool.calibrate(Options(signals=PLAIN, max_loss=0.1), drawn, drawn=True)

    assert found.policy is not None
    ended = [under(found.policy, pool.samples[at]) for at in drawn[200:]]
    assert found.rows[0].n == found.certified_on == 200
    assert found.rows[0].losses == sum(each.loss for each in ended)
    assert found.rows[0].gains == sum(each.gain for each in ended)


@pytest.mark.parametrize("per_tool", [False, True], ids=["pooled", "per tool"])
def test_the_promise_is_broken_in_at_most_delta_of_the_calibrations(per_tool: bool):
    """120 whole calibrations from logs of 150 of the same world, where most signals are poor.

    The true loss of each certified policy is that on 2,500 other trajectories.
    """
    base, logs, broken, certified = policy(), 120, 0, 0
    tools = ("search", "read")
    pool = Pool(samples(1500, 11, slope=2.0, tools=tools), base)
    fresh = samples(2500, 12, slope=2.0, tools=tools)
    truth = {
        (statistic, tool): cross(fresh, base, Signal(statistic=statistic), tools, tool=tool)
        for statistic in PLAIN
        for tool in (tools if per_tool else (None,))
    }
    random = np.random.default_rng(1)

    for log in range(logs):
        drawn = random.choice(1500, 300, replace=False).tolist()
        options = Options(signals=PLAIN, per_tool=per_tool, seed=log, max_loss=0.08, delta=0.2)
        found = pool.calibrate(options, drawn)
        risk = 0.0
        for row in found.rows:
            if row.signal is None or row.threshold is None:
                continue
            sign = -1.0 if row.signal.statistic.certain_when_above else 1.0
            seen = truth[row.signal.statistic, row.tool]
            risk += curve(seen, np.array([sign * row.threshold])).losses[0] / len(fresh)
        certified += found.policy is not None
        broken += risk > 0.08

    assert certified > logs / 2
    assert broken <= stats.binom.ppf(0.999, logs, 0.2)

"""Advantages by hand, and what must hold for any group."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.label.credit import (
    Baseline,
    group_advantages,
    otc_rewards,
    turn_advantages,
    with_bonus,
)

REWARDS = st.lists(st.none() | st.floats(0, 1), min_size=0, max_size=8)


def test_by_hand() -> None:
    rewards = [1.0, 0.0, None, 0.5]
    assert group_advantages(rewards, "mean") == pytest.approx([0.5, -0.5, None, 0.0])
    assert group_advantages(rewards, "leave_one_out") == pytest.approx([0.75, -0.75, None, 0.0])
    # population std of (1, 0, 0.5) is sqrt(1/6)
    scale = math.sqrt(1 / 6) + 1e-6
    expected = [0.5 / scale, -0.5 / scale, None, 0.0]
    assert group_advantages(rewards, "std") == pytest.approx(expected)


@pytest.mark.parametrize("rewards", [[], [1.0], [None, 1.0], [0.5, 0.5, 0.5], [None, None]])
def test_a_group_that_teaches_nothing(rewards: list[float | None]) -> None:
    assert group_advantages(rewards) == [None] * len(rewards)


@given(REWARDS, st.sampled_from(["std", "mean", "leave_one_out"]))
def test_advantages_sum_to_nothing_and_keep_the_order(
    rewards: list[float | None], baseline: Baseline
) -> None:
    advantages = group_advantages(rewards, baseline)
    pairs = [
        (r, a) for r, a in zip(rewards, advantages, strict=True) if r is not None and a is not None
    ]
    assert math.fsum(a for _, a in pairs) == pytest.approx(0, abs=1e-6)
    for r, a in pairs:
        for other, b in pairs:
            assert r <= other or a >= b
    assert all(a is None for r, a in zip(rewards, advantages, strict=True) if r is None)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_against_the_library(rewards: list[float]) -> None:
    """`statistics` as a second implementation."""
    if max(rewards) - min(rewards) < 1e-3:
        return
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    expected = [(r - mean) / (spread + 1e-6) for r in rewards]
    assert group_advantages(rewards, "std") == pytest.approx(expected, abs=1e-6)


def test_calls_are_compared_with_calls_of_the_same_turn() -> None:
    rewards = [[1.0, 1.5], [0.0], [], [0.5, None, 1.0]]
    # first calls: 1, 0, 0.5; second calls: only one is known; third: alone
    expected = [[0.75, None], [-0.75], [], [0.0, None, None]]
    assert turn_advantages(rewards) == expected


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_a_bonus_never_turns_the_sign(advantage: float, bonus: float) -> None:
    total = with_bonus(advantage, bonus)
    assert total * advantage >= 0
    if (advantage + bonus) * advantage > 0 or advantage == 0:
        assert total == advantage + bonus


def test_calls_times_correctness() -> None:
    # best outcome 1, reached with 2 calls: f(4) = 2·2·4/6 = 8/3, sin(8/3 · π/4) = sin(2π/3)
    rewards = otc_rewards([1.0, 1.0, 0.0, 0.5], [2, 4, 1, 0])
    assert rewards == pytest.approx([1.0, math.sin(2 * math.pi / 3), 0.0, 0.0])
    # reached without a call: cos(3π / 10)
    rewards = otc_rewards([1.0, 1.0], [0, 3], smoothing=4.0)
    assert rewards == pytest.approx([1.0, math.cos(3 * math.pi / 10)])
    assert otc_rewards([0.0, 0.0], [3, 1]) == [0.0, 0.0]
    assert otc_rewards([], []) == []


@given(st.integers(0, 6), st.integers(0, 6))
def test_more_calls_never_earn_more(fewest: int, more: int) -> None:
    first, second = otc_rewards([1.0, 1.0], [fewest, fewest + more])
    assert 0 <= second <= first == 1.0

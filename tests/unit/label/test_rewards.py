"""Rewards by hand, with what the paper leaves open."""

import pytest

from entrogate.label import RewardOptions, dense_rewards, sparse_reward, trajectory_rewards
from entrogate.types import EntropyChange, Interval


def change(reduced, null_reason=None):
    return EntropyChange(
        before=Interval(lower=1, upper=1),
        after=None,
        delta=None,
        delta_normalised=None,
        reduced=reduced,
        null_reason=null_reason,
    )


@pytest.mark.parametrize(
    ("outcome", "labels", "reward"),
    [
        (1.0, [True, True], 1.0),
        (0.8, [True, False], 0.4),
        (0.5, [True, False, False, True, True], 0.3),
        (1.0, [False], 0.0),
        (0.0, [True], 0.0),
        (0.6, [True, None, False, None], 0.3),  # unknown ones leave m and n
    ],
)
def test_sparse(outcome, labels, reward):
    assert sparse_reward(outcome, labels) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("labels", "options", "reward"),
    [
        ([], {}, 0.8),
        ([], {"no_calls": "zero"}, 0.0),
        ([], {"no_calls": "null"}, None),
        ([None, None], {}, None),
        ([None], {"all_unknown": "outcome"}, 0.8),
        ([None], {"all_unknown": "zero", "no_calls": "outcome"}, 0.0),
    ],
)
def test_sparse_where_n_is_zero(labels, options, reward):
    assert sparse_reward(0.8, labels, RewardOptions(**options)) == reward


def test_dense():
    assert dense_rewards(0.8, [True, False, None]) == pytest.approx((1.2, 0.8, None))
    assert dense_rewards(0.8, [True], RewardOptions(alpha=2.0)) == pytest.approx((2.4,))
    assert dense_rewards(0.0, [True, False]) == (0.0, 0.0)
    assert dense_rewards(1.0, []) == ()


def test_a_trajectory():
    changes = [
        change(None, "no_call"),  # the turn before called nothing: no group
        change(True),
        change(False),
        change(None, "short_segment"),
        None,  # the last call, which no turn followed
    ]
    rewards = trajectory_rewards(0.9, changes)
    assert (rewards.n_groups, rewards.n_labelled, rewards.n_reduced) == (4, 2, 1)
    assert rewards.sparse == pytest.approx(0.45)
    assert rewards.dense == pytest.approx((1.35, 0.9, None, None))
    assert rewards.outcome == 0.9


def test_a_trajectory_without_calls():
    rewards = trajectory_rewards(0.9, [change(None, "no_call")])
    assert (rewards.n_groups, rewards.sparse, rewards.dense) == (0, 0.9, ())


@pytest.mark.parametrize("outcome", [-0.1, 1.1, float("nan")])
def test_refuses_an_outcome_out_of_range(outcome):
    with pytest.raises(ValueError, match="want a number from 0 to 1"):
        trajectory_rewards(outcome, [])


def test_refuses_a_negative_alpha():
    with pytest.raises(ValueError, match="want 0 or more"):
        RewardOptions(alpha=-1)

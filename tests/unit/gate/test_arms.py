"""Which policy decides: shares as asked for, trajectories that stay, the last word counts."""

from __future__ import annotations

from collections import Counter
from math import nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.gate.arms import Arm, Arms, Given, Order, arms_of
from tests.unit.gate.factory import policy

MAIN, TRIAL, OTHER = policy("1.0"), policy("2.0"), policy("3.0")
KNOWN = {each.version: each for each in (MAIN, TRIAL, OTHER)}
TRAJECTORIES = [f"traj_{i:06d}" for i in range(20_000)]
SHARES = st.floats(0, 1)
NAMES = st.text(min_size=1, max_size=40)


def drawn(share: float) -> set[str]:
    arms = Arms(main=MAIN, trial=TRIAL, share=share)
    return {each for each in TRAJECTORIES if arms.policy_for(each) is TRIAL}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_what_was_asked_for(share: float) -> None:
    n = len(TRAJECTORIES)
    # 5 standard deviations of a binomial count: once in two million.
    assert abs(len(drawn(share)) - share * n) < 5 * sqrt(n * share * (1 - share))


def test_nothing_and_everything() -> None:
    assert drawn(0.0) == set()
    assert drawn(1.0) == set(TRAJECTORIES)


def test_a_share_that_grows_gives_none_away() -> None:
    assert drawn(0.1) < drawn(0.3) < drawn(0.8)


def test_every_trial_draws_anew() -> None:
    other = Arms(main=MAIN, trial=OTHER, share=0.5)
    both = sum(other.policy_for(each) is OTHER for each in drawn(0.5))
    n = len(drawn(0.5))
    assert abs(both - n / 2) < 5 * sqrt(n / 4)


@given(NAMES, SHARES, st.sampled_from([MAIN, TRIAL]))
def test_a_trajectory_that_has_begun_stays(name: str, share: float, began_on: object) -> None:
    arms = Arms(main=MAIN, trial=TRIAL, share=share)
    assert arms.policy_for(name, began_on.version) is began_on  # pyright: ignore


@given(NAMES, SHARES)
def test_one_whose_policy_is_gone_is_drawn_like_a_new_one(name: str, share: float) -> None:
    arms = Arms(main=MAIN, trial=TRIAL, share=share)
    assert arms.policy_for(name, OTHER.version) is arms.policy_for(name)
    assert Arms(main=MAIN).policy_for(name, TRIAL.version) is MAIN


def test_what_is_in_force() -> None:
    assert Arms(main=MAIN).in_force == (MAIN,)
    arms = Arms(main=MAIN, trial=TRIAL, share=0.25)
    assert arms.in_force == (MAIN, TRIAL)
    assert arms.items() == ((Arm.MAIN, MAIN), (Arm.TRIAL, TRIAL))
    assert [arms.share_of(arm) for arm in Arm] == [0.75, 0.25]


@pytest.mark.parametrize("share", [-0.1, 1.1, nan])
def test_a_share_outside(share: float) -> None:
    with pytest.raises(ValueError, match="want 0 to 1"):
        Arms(main=MAIN, trial=TRIAL, share=share)


def test_arms_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="name the policy"):
        Arms(main=MAIN, share=0.5)
    with pytest.raises(ValueError, match=f"{MAIN.version}, is the main one"):
        Arms(main=MAIN, trial=policy("1.0"))


def order(arm: Arm, version: str, of: Given, share: float = 0.0) -> dict[Arm, Order]:
    return {
        arm: Order(arm=arm, version=version, share=share, instead_of=of.mark(arm), ordered_at=1.0)
    }


def test_an_order_stands_until_the_settings_give_something_else() -> None:
    given_ = Given(main=MAIN)
    ordered = order(Arm.MAIN, TRIAL.version, given_)
    assert arms_of(given_, {}, KNOWN).main is MAIN
    assert arms_of(given_, ordered, KNOWN).main is TRIAL
    assert arms_of(Given(main=OTHER), ordered, KNOWN).main is OTHER
    # An arm's order does not care what is given for the other one.
    assert arms_of(Given(main=MAIN, trial=OTHER, share=0.1), ordered, KNOWN).main is TRIAL


def test_orders_of_a_trial() -> None:
    given_ = Given(main=MAIN, trial=TRIAL, share=0.1)
    assert arms_of(given_, {}, KNOWN) == Arms(main=MAIN, trial=TRIAL, share=0.1)
    ended = order(Arm.TRIAL, "", given_)
    assert arms_of(given_, ended, KNOWN) == Arms(main=MAIN)
    more = order(Arm.TRIAL, TRIAL.version, given_, 0.5)
    assert arms_of(given_, more, KNOWN).share == 0.5
    changed = Given(main=MAIN, trial=TRIAL, share=0.2)  # the settings' share is a word, too
    assert arms_of(changed, more, KNOWN).share == 0.2


def test_a_trial_is_over_when_it_has_become_the_main_policy() -> None:
    begun = Given(main=MAIN)
    trial = order(Arm.TRIAL, TRIAL.version, begun, 0.5)
    assert arms_of(begun, trial, KNOWN).trial is TRIAL
    assert arms_of(Given(main=TRIAL), trial, KNOWN) == Arms(main=TRIAL)


@given(
    main=st.sampled_from([MAIN, TRIAL, OTHER]),
    trial=st.sampled_from([None, MAIN, TRIAL, OTHER]),
    share=SHARES,
    ordered=st.dictionaries(
        st.sampled_from(list(Arm)),
        st.tuples(st.sampled_from([MAIN, TRIAL, OTHER]), SHARES, st.booleans()),
    ),
)
def test_there_are_always_arms(main, trial, share, ordered) -> None:  # pyright: ignore
    given_ = Given(main=main, trial=trial, share=share if trial else 0.0)
    orders = {
        arm: Order(
            arm=arm,
            version=named.version,
            share=asked,
            instead_of=given_.mark(arm) if holds else "?",
            ordered_at=1.0,
        )
        for arm, (named, asked, holds) in ordered.items()
    }
    arms = arms_of(given_, orders, KNOWN)
    assert len({each.version for each in arms.in_force}) == len(arms.in_force)
    counts = Counter(arms.policy_for(each).version for each in TRAJECTORIES[:50])
    assert set(counts) <= {each.version for each in arms.in_force}

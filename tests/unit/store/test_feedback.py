"""What a client may say of an answer."""

import math
from typing import Any

import pytest

from entrogate.store.write.feedback import Feedback


def feedback(**changed: Any) -> Feedback:
    targets: dict[str, str | None] = {"trajectory_id": "t", "response_id": None}
    values: dict[str, Any] = {"targets": targets, "score": None, "answer": None, "gold": None}
    return Feedback.of(**(values | {"comment": None} | changed))  # pyright: ignore


def test_a_score_is_taken_as_it_is() -> None:
    given = feedback(score=0.25)
    assert (given.target, given.target_id, given.score) == ("trajectory_id", "t", 0.25)


def test_the_best_of_several_golds_counts() -> None:
    # "the old mill" against "mill": precision 1/2 (articles do not count), recall 1: F1 = 2/3.
    assert feedback(answer="the old mill", gold="mill").score == pytest.approx(2 / 3)
    assert feedback(answer="the old mill", gold=["barn", "old mill"]).score == 1.0


@pytest.mark.parametrize("score", [-0.01, 1.01, math.nan, math.inf])
def test_a_score_out_of_range_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        feedback(score=score)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"answer": "a"},
        {"gold": "a"},
        {"score": 0.5, "answer": "a", "gold": "a"},
        {"answer": "a", "gold": []},
        {"score": 1.0, "targets": {"trajectory_id": None, "response_id": None}},
        {"score": 1.0, "targets": {"trajectory_id": "a", "response_id": "b"}},
    ],
)
def test_a_bad_combination_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give|name exactly one"):
        feedback(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "x" * 65_537, "gold": "x"}, "answer has 65537 characters; give at most 65536"),
        ({"answer": "x", "gold": ["x"] * 101}, "gold has 101 answers; give at most 100"),
        ({"answer": "x", "gold": ["x" * 200_000] * 2}, "400000 characters in all; give at most"),
    ],
)
def test_sizes_are_bounded_before_words_are_compared(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        feedback(**changed)

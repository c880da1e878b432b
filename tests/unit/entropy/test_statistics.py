"""Segment statistics by hand, and their intervals against random entropies inside the bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.entropy.statistics import draft_stats, segment_stats
from entrogate.types import Capture, Estimator, Interval


def capture_of(lower, upper=None, margin=None, p_tool_call=None):
    upper = lower if upper is None else upper
    n = len(lower)

    def column(values, default):
        return np.array(values if values is not None else [default] * n, dtype=np.float32)

    return Capture(
        token_ids=np.arange(n, dtype=np.int32),
        logprobs=column(None, -1),
        entropy_lower=column(lower, 0),
        entropy_upper=column(upper, 0),
        margin=column(margin, 1),
        tail_mass=column(None, 0),
        p_tool_call=column(p_tool_call, np.nan),
        estimator=Estimator.TOPK,
        top_k=20,
    )


def test_worked_by_hand():
    lower = [float(i) for i in range(20)]
    upper = [i + 0.5 for i in range(20)]
    stats = segment_stats(capture_of(lower, upper, margin=range(20)), [(2, 5), (8, 20)])
    assert stats is not None
    # tokens 2, 3, 4, 8..19: 15 of them, so the tail is ceil(1.5) = 2
    assert (stats.start, stats.stop, stats.n_tokens) == (2, 20, 15)
    assert stats.mean == Interval(lower=171 / 15, upper=171 / 15 + 0.5)
    assert stats.max == Interval(lower=19.0, upper=19.5)
    assert stats.tail_mean == Interval(lower=18.5, upper=19.0)
    assert stats.last_window == Interval(lower=15.5, upper=16.0)
    assert (stats.margin_mean, stats.margin_min) == (171 / 15, 2.0)
    assert (stats.sum, stats.logprob_sum) == (Interval(lower=171.0, upper=178.5), -15.0)
    assert stats.p_tool_call is None
    assert stats.estimator is Estimator.TOPK


def test_a_draft_is_the_beginning_without_the_token_that_ends_the_answer():
    capture = capture_of([1.0, 2.0, 4.0, 8.0])
    sums = [
        draft_stats(capture, 2, ended=False),
        draft_stats(capture, 9, ended=False),
        draft_stats(capture, 9, ended=True),
        draft_stats(capture, 3, ended=True),
    ]
    assert [s.sum.lower for s in sums if s is not None and s.sum is not None] == [3, 15, 7, 7]
    assert draft_stats(capture_of([1.0]), 4, ended=True) is None
    assert draft_stats(capture_of([]), 4, ended=False) is None


def test_an_unknown_logprob_leaves_no_sum_of_them():
    capture = replace(capture_of([1.0, 2.0]), logprobs=np.array([-1, np.nan], dtype=np.float32))
    stats = segment_stats(capture, [(0, 2)])
    assert stats is not None
    assert stats.logprob_sum is None


def test_one_token_is_its_own_statistics():
    stats = segment_stats(capture_of([1.5]), [(0, 1)])
    assert stats is not None
    assert stats.mean == stats.max == stats.tail_mean == stats.last_window
    assert stats.mean == Interval(lower=1.5, upper=1.5)


def test_the_tool_call_probability_is_that_of_the_decision():
    capture = capture_of([1.0] * 4, p_tool_call=[0.0, np.nan, 0.75, 0.0])
    known = segment_stats(capture, [(0, 1)], decision_at=2)
    unknown = segment_stats(capture, [(0, 1)], decision_at=1)
    beyond = segment_stats(capture, [(0, 1)], decision_at=4)
    assert known is not None
    assert known.p_tool_call == 0.75
    assert unknown is not None
    assert unknown.p_tool_call is None
    assert beyond is not None
    assert beyond.p_tool_call is None


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=40)
)
def test_every_statistic_of_the_true_entropies_is_inside(tokens):
    lower = np.array([low for low, _, _ in tokens], dtype=np.float32)
    upper = lower + np.array([width for _, width, _ in tokens], dtype=np.float32)
    share = np.array([share for _, _, share in tokens])
    truth = np.clip(lower + share * (upper - lower), lower, upper).astype(np.float32)
    bounds = segment_stats(capture_of(lower, upper), [(0, len(tokens))])
    exact = segment_stats(capture_of(truth), [(0, len(tokens))])
    assert bounds is not None
    assert exact is not None
    for name in ("mean", "max", "tail_mean", "last_window", "sum"):
        inside, value = getattr(bounds, name), getattr(exact, name).lower
        assert inside.lower - 1e-12 <= value <= inside.upper + 1e-12


@pytest.mark.parametrize("ranges", [[], [(1, 1)], [(0, 0), (3, 3)]])
def test_no_token_no_segment(ranges):
    assert segment_stats(capture_of([1.0] * 3), ranges) is None


def test_a_token_without_bounds_is_a_gap():
    assert segment_stats(capture_of([1.0, np.nan, 1.0]), [(0, 3)]) is None
    assert segment_stats(capture_of([1.0, np.nan, 1.0]), [(0, 1), (2, 3)]) is not None


@pytest.mark.parametrize("ranges", [[(0, 4)], [(2, 1)], [(1, 3), (0, 1)], [(0, 2), (1, 3)]])
def test_refuses_ranges_outside_or_out_of_order(ranges):
    with pytest.raises(ValueError, match="out of order or outside"):
        segment_stats(capture_of([1.0] * 3), ranges)

"""ΔH and I_k by hand, and each reason for not knowing them."""

import pytest

from entrogate.label import entropy_change
from entrogate.types import Estimator, Interval, SegmentStats


def segment(lower, upper=None, n_tokens=10):
    mean = Interval(lower=lower, upper=lower if upper is None else upper)
    other = Interval(lower=8.0, upper=9.0)  # no statistic but the mean may matter
    return SegmentStats(
        start=0,
        stop=n_tokens,
        n_tokens=n_tokens,
        estimator=Estimator.TOPK,
        mean=mean,
        max=other,
        tail_mean=other,
        last_window=other,
        margin_mean=1.0,
        margin_min=1.0,
        p_tool_call=None,
    )


@pytest.mark.parametrize(
    ("before", "after", "delta", "relative", "reduced"),
    [
        (segment(2.0), segment(0.5), (-1.5, -1.5), -0.75, True),
        (segment(0.5), segment(2.0), (1.5, 1.5), 3.0, False),
        (segment(2.0), segment(2.0), (0.0, 0.0), 0.0, False),  # I_k = 1[ΔH < 0]: not reduced
        (segment(2.0, 3.0), segment(0.5, 1.5), (-2.5, -0.5), -1.5 / 2.5, True),
        (segment(1.0, 2.0), segment(2.0, 3.0), (0.0, 2.0), 1.0 / 1.5, False),
        (segment(0.0), segment(1.0), (1.0, 1.0), 1e8, False),
    ],
)
def test_the_change(before, after, delta, relative, reduced):
    change = entropy_change(before, after)
    assert change.delta == Interval(lower=delta[0], upper=delta[1])
    assert change.delta_normalised == pytest.approx(relative, rel=1e-6)
    assert change.reduced is reduced
    assert change.null_reason is None
    assert (change.before, change.after) == (before.mean, after.mean)


@pytest.mark.parametrize("after", [segment(0.5, 2.1), segment(2.5, 2.6), segment(0.5, 2.0)])
def test_overlapping_bounds_leave_the_sign_unknown(after):
    change = entropy_change(segment(2.0, 3.0), after)
    assert change.reduced is None
    assert change.delta_normalised is None
    assert change.null_reason == "overlapping_bounds"
    assert change.delta is not None
    assert change.delta.lower < 0 <= change.delta.upper


LONG, SHORT = segment(2.0), segment(2.0, n_tokens=3)


@pytest.mark.parametrize(
    ("before", "after", "options", "reason"),
    [
        (LONG, SHORT, {}, "short_segment"),
        (SHORT, LONG, {}, "short_segment"),
        (LONG, segment(1.0, n_tokens=9), {"min_tokens": 10}, "short_segment"),
        (None, LONG, {}, "missing_segment"),
        (LONG, None, {}, "missing_segment"),
        (LONG, segment(1.0), {"before_complete": False}, "incomplete_capture"),
        (LONG, None, {"after_complete": False}, "incomplete_capture"),
        (LONG, segment(1.0), {"has_calls": False}, "no_call"),
    ],
)
def test_null_never_zero(before, after, options, reason):
    change = entropy_change(before, after, **options)
    assert change.null_reason == reason
    assert (change.delta, change.delta_normalised, change.reduced) == (None, None, None)


def test_just_long_enough():
    assert entropy_change(segment(2.0, n_tokens=4), segment(1.0, n_tokens=4)).reduced is True

"""Statistics of a segment's token entropies, each as an interval.

With l_t <= H_t <= u_t for every token, each statistic of the true entropies lies between the same
statistic of the l_t and of the u_t, because each does not fall when one of its arguments grows:

- mean, last window: sums with weights >= 0;
- max, and the i-th largest in general: if all values grow, at least as many reach any level;
- tail mean: a mean of the i-th largest values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from entrogate.types import Capture, Interval, SegmentStats

TAIL_SHARE = 0.1
LAST_WINDOW = 8

_Values = NDArray[np.float64]


def segment_stats(
    capture: Capture, ranges: Sequence[tuple[int, int]], *, decision_at: int | None = None
) -> SegmentStats | None:
    """Statistics over the tokens of ``ranges`` ([start, stop) each, in order and apart).

    ``mean`` is the paper's H(r); ``max`` the largest token entropy; ``tail_mean`` the mean of the
    highest tenth of the tokens (rounded up, at least 1); ``last_window`` the mean of the last 8 (or
    of all, if fewer). ``p_tool_call`` is the probability of the tool-call token at position
    ``decision_at`` (see `segments.decision_position`), None where unknown.

    None without tokens and where the entropy of one of them is unknown: a capture gap. Raises
    ValueError on ranges outside the capture or out of order.
    """
    _check(ranges, len(capture))
    at = np.concatenate([np.arange(a, b) for a, b in ranges] or [np.arange(0)])
    bounds = np.stack((capture.entropy_lower[at], capture.entropy_upper[at])).astype(np.float64)
    if len(at) == 0 or not np.isfinite(bounds).all():
        return None
    margin = capture.margin[at].astype(np.float64)

    def interval(statistic: Callable[[_Values], _Values]) -> Interval:
        lower, upper = statistic(bounds)
        return Interval(lower=float(lower), upper=float(upper))

    return SegmentStats(
        start=int(at[0]),
        stop=int(at[-1]) + 1,
        n_tokens=len(at),
        estimator=capture.estimator,
        mean=interval(_mean),
        max=interval(_max),
        tail_mean=interval(_tail_mean),
        last_window=interval(_last_window),
        margin_mean=float(margin.mean()),
        margin_min=float(margin.min()),
        p_tool_call=_p_tool_call(capture, decision_at),
    )


def _check(ranges: Sequence[tuple[int, int]], length: int) -> None:
    end = 0
    for start, stop in ranges:
        if not end <= start <= stop <= length:
            raise ValueError(
                f"range [{start}, {stop}) is out of order or outside [{end}, {length})"
            )
        end = stop


def _p_tool_call(capture: Capture, position: int | None) -> float | None:
    if position is None or not 0 <= position < len(capture):
        return None
    value = float(capture.p_tool_call[position])
    return None if math.isnan(value) else value


def _mean(bounds: _Values) -> _Values:
    return bounds.mean(axis=1)


def _max(bounds: _Values) -> _Values:
    return bounds.max(axis=1)


def _tail_mean(bounds: _Values) -> _Values:
    count = max(1, math.ceil(TAIL_SHARE * bounds.shape[1]))
    return np.sort(bounds, axis=1)[:, -count:].mean(axis=1)


def _last_window(bounds: _Values) -> _Values:
    return bounds[:, -LAST_WINDOW:].mean(axis=1)

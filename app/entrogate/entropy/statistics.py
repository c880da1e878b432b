"""Statistics of a segment's token entropies, each as an interval.

With l_t <= H_t <= u_t for every token, each statistic of the true entropies lies between the same
statistic of the l_t and of the u_t, because each does not fall when one of its arguments grows:

- sum, mean, last window: sums with weights >= 0;
- max, and the i-th largest in general: if all values grow, at least as many reach any level;
- tail mean: a mean of the i-th largest values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

from entrogate.types import Capture, FloatArray, Interval, SegmentStats

TAIL_SHARE = 0.1
LAST_WINDOW = 8


def _least(values: list[float]) -> float:
    """The smallest; nan where one is unknown."""
    return math.nan if any(map(math.isnan, values)) else min(values)


def _tail_mean(values: list[float]) -> float:
    count = max(1, math.ceil(TAIL_SHARE * len(values)))
    return fmean(sorted(values)[-count:])


def _last_window(values: list[float]) -> float:
    return fmean(values[-LAST_WINDOW:])


# By the name that a policy gives them, over the values of a segment's tokens (at least one). The
# gate in the engine and `segment_stats` use the same.
STATISTICS: Mapping[str, Callable[[list[float]], float]] = MappingProxyType(
    {
        "entropy_max": max,
        "entropy_mean": fmean,
        "entropy_tail_mean": _tail_mean,
        "entropy_last_window": _last_window,
        "margin_mean": fmean,
        "margin_min": _least,
        "entropy_sum": sum,
        "logprob_sum": sum,
    }
)


def segment_stats(
    capture: Capture, ranges: Sequence[tuple[int, int]], *, decision_at: int | None = None
) -> SegmentStats | None:
    """Statistics over the tokens of ``ranges`` ([start, stop) each, in order and apart).

    ``mean`` is the paper's H(r), ``sum`` what it is the mean of; ``logprob_sum`` adds up the
    log-probs of the sampled tokens (None where one is unknown); ``max`` is the largest token
    entropy; ``tail_mean`` the mean of the highest tenth of the tokens (rounded up, at least 1);
    ``last_window`` the mean of the last 8 (or of all, if fewer). ``p_tool_call`` is the probability
    of the tool-call token at position ``decision_at`` (see `segments.decision_position`), None
    where unknown.

    None without tokens and where the entropy of one of them is unknown: a capture gap. Raises
    ValueError on ranges outside the capture or out of order.
    """
    _check(ranges, len(capture))
    lower = _values(capture.entropy_lower, ranges)
    upper = _values(capture.entropy_upper, ranges)
    if not lower or not all(map(math.isfinite, lower)) or not all(map(math.isfinite, upper)):
        return None
    margin = _values(capture.margin, ranges)

    def interval(name: str) -> Interval:
        return Interval(lower=STATISTICS[name](lower), upper=STATISTICS[name](upper))

    return SegmentStats(
        start=next(start for start, stop in ranges if start < stop),
        stop=next(stop for start, stop in reversed(ranges) if start < stop),
        n_tokens=len(lower),
        estimator=capture.estimator,
        mean=interval("entropy_mean"),
        max=interval("entropy_max"),
        tail_mean=interval("entropy_tail_mean"),
        last_window=interval("entropy_last_window"),
        margin_mean=STATISTICS["margin_mean"](margin),
        margin_min=STATISTICS["margin_min"](margin),
        p_tool_call=_p_tool_call(capture, decision_at),
        sum=interval("entropy_sum"),
        logprob_sum=_known(STATISTICS["logprob_sum"](_values(capture.logprobs, ranges))),
    )


def draft_stats(capture: Capture, n_tokens: int, *, ended: bool) -> SegmentStats | None:
    """Statistics over the first ``n_tokens`` of an answer without its call: the draft.

    ``capture`` begins where the call would have. ``ended``: the answer is complete, so its last
    token is the one that ends it and is left out where it is among these. None without tokens and
    where an entropy is unknown. After TARG (arXiv 2511.09803), which measures such a prefix.
    """
    stop = min(n_tokens, len(capture) - ended)
    return segment_stats(capture, [(0, stop)]) if stop > 0 else None


def _values(values: FloatArray, ranges: Sequence[tuple[int, int]]) -> list[float]:
    """As a list: on the tens of tokens of a segment, plain Python is faster than numpy."""
    return [value for start, stop in ranges for value in values[start:stop].tolist()]


def _check(ranges: Sequence[tuple[int, int]], length: int) -> None:
    end = 0
    for start, stop in ranges:
        if not end <= start <= stop <= length:
            raise ValueError(
                f"range [{start}, {stop}) is out of order or outside [{end}, {length})"
            )
        end = stop


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _p_tool_call(capture: Capture, position: int | None) -> float | None:
    if position is None or not 0 <= position < len(capture):
        return None
    value = float(capture.p_tool_call[position])
    return None if math.isnan(value) else value

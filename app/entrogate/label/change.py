"""ΔH_k = H(r_k) - H(r_{k-1}) of the calls between two turns, or why it is unknown.

Source: Li et al., arXiv 2602.02050; the null rules are ours, since the paper names none.
"""

from __future__ import annotations

from entrogate.types import EntropyChange, Interval, SegmentStats

MIN_TOKENS = 4
_EPSILON = 1e-8  # the paper's, against a division by 0


def entropy_change(
    before: SegmentStats | None,
    after: SegmentStats | None,
    *,
    min_tokens: int = MIN_TOKENS,
    has_calls: bool = True,
    before_complete: bool = True,
    after_complete: bool = True,
) -> EntropyChange:
    """The label of the calls that stand between the turns with segments ``before`` and ``after``.

    Parallel calls share it. ``has_calls``: the earlier turn called a tool. ``*_complete``: the
    capture of that turn has no gap. H(r) is the mean token entropy in nats.

    The first of these reasons that holds makes the label null (never 0): no_call,
    incomplete_capture, missing_segment, short_segment (fewer than ``min_tokens``),
    overlapping_bounds. With the last, ``delta`` is known as an interval but its sign is not, so
    ``reduced`` and ``delta_normalised`` are None. ``delta_normalised`` is made of midpoints.
    """
    if not has_calls:
        return _null("no_call", None, None)
    if not (before_complete and after_complete):
        return _null("incomplete_capture", None, None)
    if before is None or after is None:
        return _null("missing_segment", before, after)
    if min(before.n_tokens, after.n_tokens) < min_tokens:
        return _null("short_segment", before, after)
    delta = Interval(
        lower=after.mean.lower - before.mean.upper, upper=after.mean.upper - before.mean.lower
    )
    reduced = True if delta.upper < 0 else False if delta.lower >= 0 else None
    relative = delta.midpoint / (before.mean.midpoint + _EPSILON)
    return EntropyChange(
        before=before.mean,
        after=after.mean,
        delta=delta,
        delta_normalised=None if reduced is None else relative,
        reduced=reduced,
        null_reason="overlapping_bounds" if reduced is None else None,
    )


def _null(reason: str, before: SegmentStats | None, after: SegmentStats | None) -> EntropyChange:
    return EntropyChange(
        before=None if before is None else before.mean,
        after=None if after is None else after.mean,
        delta=None,
        delta_normalised=None,
        reduced=None,
        null_reason=reason,
    )

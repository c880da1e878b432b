"""Tokens to reasoning, call, answer and control spans."""

from entrogate.segments.online import SegmentSoFar
from entrogate.segments.spans import (
    CALL_MARKER_MISSING,
    Markers,
    call_gap,
    decision_position,
    find_spans,
    reasoning_ranges,
    starts_in_reasoning,
)

__all__ = [
    "CALL_MARKER_MISSING",
    "Markers",
    "SegmentSoFar",
    "call_gap",
    "decision_position",
    "find_spans",
    "reasoning_ranges",
    "starts_in_reasoning",
]

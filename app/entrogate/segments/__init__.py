"""Tokens to reasoning, call, answer and control spans."""

from entrogate.segments.spans import Markers, decision_position, find_spans, reasoning_ranges

__all__ = ["Markers", "decision_position", "find_spans", "reasoning_ranges"]

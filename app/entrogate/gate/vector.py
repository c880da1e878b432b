"""What the gate knows of one call as numbers by name, and the learned model over them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from entrogate.types import Features, SegmentStats

TOOL_FEATURE = "tool="
"""Begins the name of the feature that is 1 for calls of that tool and 0 for others."""

_OF_SEGMENT = (
    "entropy_max",
    "entropy_mean",
    "entropy_tail_mean",
    "entropy_last_window",
    "entropy_sum",
    "margin_mean",
    "margin_min",
    "logprob_sum",
    "n_tokens",
)
_OF_CALL = (
    "p_tool_call",
    "calls_before",
    "tool_calls_before",
    "parallel_calls",
    "repeats",
    "near_repeats",
    "delta",
)
FEATURES = (*_OF_SEGMENT, *(f"draft_{name}" for name in _OF_SEGMENT), *_OF_CALL)
"""Names of the features of every call, beside those of the tools."""


def named_values(features: Features) -> dict[str, float | None]:
    """Every feature of one call; None where it is unknown.

    Entropies are the middle of their bounds, in nats. `FEATURES` lists the names; the feature of
    the tool itself (``tool=NAME``) comes on top.
    """
    segment = features.segment
    call: dict[str, float | None] = {
        "p_tool_call": None if segment is None else segment.p_tool_call,
        "calls_before": features.calls_before,
        "tool_calls_before": features.tool_calls_before,
        "parallel_calls": features.parallel_calls,
        "repeats": features.repeats,
        "near_repeats": features.near_repeats,
        "delta": features.delta,
        TOOL_FEATURE + features.tool: 1.0,
    }
    values = _of_segment(segment) | _of_segment(features.draft, "draft_") | call
    return {name: _known(value) for name, value in values.items()}


def learned_value(
    intercept: float,
    weights: Mapping[str, float],
    missing: Mapping[str, float],
    features: Features,
) -> float | None:
    """Probability that the answer without the call is right: sigmoid(intercept + Σ weight · x).

    ``missing`` holds what stands for an unknown feature; None where one is unknown that it lacks.
    """
    values = named_values(features)
    total = intercept
    for name, weight in weights.items():
        value = values.get(name)
        if value is None:
            value = 0.0 if name.startswith(TOOL_FEATURE) else missing.get(name)
        if value is None:
            return None
        total += weight * value
    if math.isnan(total):
        return None
    return 1.0 / (1.0 + math.exp(-total)) if total > -700.0 else 0.0


def _of_segment(segment: SegmentStats | None, prefix: str = "") -> dict[str, float | None]:
    if segment is None:
        return {prefix + name: None for name in _OF_SEGMENT}
    values = {
        "entropy_max": segment.max.midpoint,
        "entropy_mean": segment.mean.midpoint,
        "entropy_tail_mean": segment.tail_mean.midpoint,
        "entropy_last_window": segment.last_window.midpoint,
        "entropy_sum": None if segment.sum is None else segment.sum.midpoint,
        "margin_mean": segment.margin_mean,
        "margin_min": segment.margin_min,
        "logprob_sum": segment.logprob_sum,
        "n_tokens": float(segment.n_tokens),
    }
    return {prefix + name: value for name, value in values.items()}


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

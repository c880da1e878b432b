"""Features to JSON and back, exactly: a stored decision must replay to the same result."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, cast

from entrogate.types import Estimator, Features, Interval, SegmentStats

SCHEMA_VERSION = 1
_INTERVALS = ("mean", "max", "tail_mean", "last_window")
_MARGINS = ("margin_mean", "margin_min")


def to_json(features: Features) -> str:
    """One line of JSON. Floats keep every bit (the shortest digits that read back the same)."""
    values = asdict(features)
    segment = values["segment"]
    if segment is not None:
        for name in _MARGINS:  # JSON has no nan
            segment[name] = None if math.isnan(segment[name]) else segment[name]
    return json.dumps(
        {"schema_version": SCHEMA_VERSION} | values, separators=(",", ":"), allow_nan=False
    )


def from_json(text: str | bytes) -> Features:
    """The features that `to_json` wrote. Raises ValueError on anything else."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not the features of a call: want a JSON object")
    fields = cast("dict[str, Any]", values)
    version = fields.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"features of schema version {version}; want {SCHEMA_VERSION}")
    try:
        segment = fields.pop("segment")
        return Features(segment=None if segment is None else _segment(segment), **fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not the features of a call: {error}") from None


def _segment(values: dict[str, Any]) -> SegmentStats:
    values = values | {name: Interval(**values[name]) for name in _INTERVALS}
    for name in _MARGINS:
        values[name] = math.nan if values[name] is None else values[name]
    values["estimator"] = Estimator(values["estimator"])
    return SegmentStats(**values)

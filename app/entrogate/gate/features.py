"""Features to JSON and back, exactly: a stored decision must replay to the same result."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any, cast

import msgspec

from entrogate.types import Estimator, Features, Interval, SegmentStats

SCHEMA_VERSION = 1
_INTERVALS = ("mean", "max", "tail_mean", "last_window")
_MARGINS = ("margin_mean", "margin_min")


def to_json(features: Features) -> str:
    """One line of JSON. Floats keep every bit; the unknown (nan) becomes null."""
    values = {f.name: getattr(features, f.name) for f in fields(features)}
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION} | values).decode()


def from_json(text: str | bytes) -> Features:
    """The features that `to_json` wrote. Raises ValueError on anything else."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not the features of a call: want a JSON object")
    stored = cast("dict[str, Any]", values)
    version = stored.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"features of schema version {version}; want {SCHEMA_VERSION}")
    try:
        segment = stored.pop("segment")
        return Features(segment=None if segment is None else _segment(segment), **stored)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not the features of a call: {error}") from None


def _segment(values: dict[str, Any]) -> SegmentStats:
    values = values | {name: Interval(**values[name]) for name in _INTERVALS}
    for name in _MARGINS:
        values[name] = math.nan if values[name] is None else values[name]
    values["estimator"] = Estimator(values["estimator"])
    return SegmentStats(**values)

"""Features to JSON and back, exactly: a stored decision must replay to the same result."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any, cast

import msgspec

from entrogate.types import Estimator, Features, Interval, SegmentStats

SCHEMA_VERSION = 2
_READ = (1, SCHEMA_VERSION)  # version 1 lacks what has a default today
_INTERVALS = ("mean", "max", "tail_mean", "last_window", "sum")
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
    if version not in _READ:
        raise ValueError(f"features of schema version {version}; want {SCHEMA_VERSION}")
    try:
        segment, draft = stored.pop("segment"), stored.pop("draft", None)
        return Features(
            segment=None if segment is None else _segment(segment),
            draft=None if draft is None else _segment(draft),
            called_since=tuple(stored.pop("called_since", ())),
            **stored,
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not the features of a call: {error}") from None


def _segment(values: dict[str, Any]) -> SegmentStats:
    known = [name for name in _INTERVALS if values.get(name) is not None]
    values = values | {name: Interval(**values[name]) for name in known}
    for name in _MARGINS:
        values[name] = math.nan if values[name] is None else values[name]
    values["estimator"] = Estimator(values["estimator"])
    return SegmentStats(**values)

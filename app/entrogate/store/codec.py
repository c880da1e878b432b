"""Stored forms of arrays and small structures, and back.

Arrays are raw little-endian blobs: int32 for token ids, float32 for the rest. They are not
compressed: zlib level 1 saves under 10 % of a float array and costs about 85 µs for 4 KB
(docs/decisions/0002-store.md).
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from entrogate.types import (
    EntropyChange,
    Estimator,
    FloatArray,
    IntArray,
    Interval,
    SegmentStats,
    Span,
    SpanKind,
)

_INT = np.dtype("<i4")
_FLOAT = np.dtype("<f4")


def pack_ints(values: IntArray) -> bytes:
    """Little-endian int32 bytes."""
    return values.astype(_INT, copy=False).tobytes()


def unpack_ints(blob: bytes) -> IntArray:
    """The opposite of `pack_ints`: int32 in the machine's byte order."""
    return np.frombuffer(blob, dtype=_INT).astype(np.int32, copy=False)


def pack_floats(values: FloatArray) -> bytes:
    """Little-endian float32 bytes; nan payloads survive."""
    return values.astype(_FLOAT, copy=False).tobytes()


def unpack_floats(blob: bytes) -> FloatArray:
    """The opposite of `pack_floats`: float32 in the machine's byte order."""
    return np.frombuffer(blob, dtype=_FLOAT).astype(np.float32, copy=False)


def sequence_hash(token_ids: NDArray[np.int32]) -> bytes:
    """Blake2b-128 of the little-endian int32 bytes, as in ``TurnHead.sequence_hash``."""
    return hashlib.blake2b(pack_ints(token_ids), digest_size=16).digest()


def dump_segment(segment: SegmentStats | None) -> str | None:
    """Statistics of a segment as JSON; None where the turn has no segment."""
    return None if segment is None else orjson.dumps(segment).decode()


def load_segment(text: str | None) -> SegmentStats | None:
    """The inverse of `dump_segment`."""
    if text is None:
        return None
    fields = orjson.loads(text)
    for name in ("mean", "max", "tail_mean", "last_window", "sum"):
        if fields.get(name) is not None:  # `sum` is newer than the others
            fields[name] = Interval(**fields[name])
    for name in ("margin_mean", "margin_min"):
        if fields[name] is None:  # JSON has no nan
            fields[name] = float("nan")
    fields["estimator"] = Estimator(fields["estimator"])
    return SegmentStats(**fields)


def dump_spans(spans: tuple[Span, ...]) -> str:
    """JSON ``[[kind, start, stop], ...]``."""
    return orjson.dumps([(int(span.kind), span.start, span.stop) for span in spans]).decode()


def load_spans(text: str) -> tuple[Span, ...]:
    """The opposite of `dump_spans`. Raises ValueError for a kind of span that is unknown."""
    return tuple(
        Span(kind=SpanKind(kind), start=start, stop=stop)
        for kind, start, stop in cast("list[tuple[int, int, int]]", orjson.loads(text))
    )


def dump_change(change: EntropyChange) -> dict[str, Any]:
    """The columns of ``changes`` except the turn's id."""
    row: dict[str, Any] = {}
    for name in ("before", "after", "delta"):
        interval: Interval | None = getattr(change, name)
        row[f"{name}_lower"] = None if interval is None else interval.lower
        row[f"{name}_upper"] = None if interval is None else interval.upper
    row["delta_normalised"] = change.delta_normalised
    row["reduced"] = change.reduced
    row["null_reason"] = change.null_reason
    return row


def load_change(row: dict[str, Any]) -> EntropyChange:
    """The inverse of `dump_change`."""

    def interval(name: str) -> Interval | None:
        lower, upper = row[f"{name}_lower"], row[f"{name}_upper"]
        return None if lower is None else Interval(lower=lower, upper=upper)

    return EntropyChange(
        before=interval("before"),
        after=interval("after"),
        delta=interval("delta"),
        delta_normalised=row["delta_normalised"],
        reduced=row["reduced"],
        null_reason=row["null_reason"],
    )

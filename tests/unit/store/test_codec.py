"""What goes into the database comes out of it, bit for bit."""

import hashlib
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from entrogate.store.codec import (
    dump_change,
    dump_segment,
    dump_spans,
    load_change,
    load_segment,
    load_spans,
    pack_floats,
    pack_ints,
    sequence_hash,
    unpack_floats,
    unpack_ints,
)
from entrogate.types import Span, SpanKind
from tests.unit.store.made import change, segment


@given(arrays(np.int32, st.integers(0, 50)))
def test_token_ids_round_trip(values: np.ndarray) -> None:
    blob = pack_ints(values)
    assert blob == struct.pack(f"<{len(values)}i", *values.tolist())
    assert unpack_ints(blob).tolist() == values.tolist()


@given(arrays(np.uint32, st.integers(0, 50)))
def test_every_float_bit_pattern_survives(bits: np.ndarray) -> None:
    values = bits.view(np.float32)  # nan payloads, infinities and subnormals included
    assert unpack_floats(pack_floats(values)).tobytes() == values.tobytes()


def test_a_view_with_strides_is_packed_in_its_own_order() -> None:
    values = np.arange(10, dtype=np.int32)[::-2]
    assert unpack_ints(pack_ints(values)).tolist() == [9, 7, 5, 3, 1]


def test_sequence_hash_is_blake2b_128_of_the_int32_bytes() -> None:
    expected = hashlib.blake2b(struct.pack("<3i", 1, 2, 70000), digest_size=16).digest()
    assert sequence_hash(np.array([1, 2, 70000], dtype=np.int32)) == expected


def test_segment_round_trip() -> None:
    stats = segment(1 / 3)
    assert load_segment(dump_segment(stats)) == stats
    assert load_segment(dump_segment(None)) is None


def test_a_missing_margin_stays_missing() -> None:
    read = load_segment(dump_segment(replace(segment(), margin_min=math.nan)))
    assert read is not None
    assert math.isnan(read.margin_min)
    assert read.margin_mean == 2.0


def test_spans_keep_their_kinds_and_borders() -> None:
    spans = (
        Span(kind=SpanKind.CALL, start=3, stop=9),
        Span(kind=SpanKind.CALL, start=9, stop=12),  # parallel calls stay two
    )
    assert dump_spans(spans) == "[[1,3,9],[1,9,12]]"
    assert load_spans(dump_spans(spans)) == spans


@pytest.mark.parametrize("reduced", [True, False, None])
def test_change_round_trip(reduced: bool | None) -> None:
    label = change(reduced)
    assert load_change(dump_change(label)) == label

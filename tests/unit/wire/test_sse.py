"""Splitting a byte stream into events must not depend on where the network cuts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.errors import UpstreamProtocol
from entrogate.wire.sse import DONE, MAX_EVENT_BYTES, EventSplitter, event_data, json_event

_payload = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30)


@given(st.lists(_payload, max_size=8), st.lists(st.integers(1, 7), max_size=80))
def test_any_cut_gives_the_same_events(payloads: list[str], cuts: list[int]) -> None:
    events = [b"data: " + p.encode() + b"\n\n" for p in payloads]
    stream = b"".join(events)
    splitter, found, at = EventSplitter(), [], 0
    for length in [*cuts, len(stream)]:
        found += splitter.feed(stream[at : at + length])
        at += length
    assert found == events
    assert splitter.rest == b""


@given(st.lists(_payload, max_size=8), st.lists(st.integers(1, 5), max_size=80))
def test_carriage_returns_are_line_ends_too(payloads: list[str], cuts: list[int]) -> None:
    stream = b"".join(b"data: " + p.encode() + b"\r\n\r\n" for p in payloads)
    splitter, found, at = EventSplitter(), [], 0
    for length in [*cuts, len(stream)]:
        found += splitter.feed(stream[at : at + length])
        at += length
    assert [event_data(e) for e in found] == [p.encode().strip() for p in payloads]


def test_an_unfinished_event_waits() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: one\n") == []
    assert splitter.feed(b"\ndata: tw") == [b"data: one\n\n"]
    assert splitter.rest == b"data: tw"


@given(st.lists(_payload, max_size=8), st.lists(st.integers(1, 3), max_size=80))
def test_line_ends_may_be_mixed_and_a_byte_order_mark_comes_first(
    payloads: list[str], cuts: list[int]
) -> None:
    ends = [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"]
    stream = b"\xef\xbb\xbf" + b"".join(
        b"data: " + p.encode() + ends[i % 4] for i, p in enumerate(payloads)
    )
    splitter, found, at = EventSplitter(), [], 0
    for length in [*cuts, len(stream)]:
        found += splitter.feed(stream[at : at + length])
        at += length
    found += splitter.feed(b"\n")  # a CR at the very end waits for what follows
    assert [event_data(e) for e in found] == [p.encode().strip() for p in payloads]


def test_an_event_without_an_end_is_refused() -> None:
    splitter, piece = EventSplitter(), b"a" * 2**20
    for _ in range(MAX_EVENT_BYTES // 2**20):
        assert splitter.feed(piece) == []
    with pytest.raises(UpstreamProtocol, match="more than"):
        splitter.feed(piece)


def test_data_of_several_lines_is_joined_and_comments_have_none() -> None:
    assert event_data(b"event: x\ndata: a\ndata: b\n\n") == b"a\nb"
    assert event_data(b": keep-alive\n\n") is None
    assert event_data(DONE) == b"[DONE]"
    assert event_data(json_event({"a": 1})) == b'{"a":1}'

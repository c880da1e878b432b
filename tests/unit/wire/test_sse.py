"""Splitting a byte stream into events must not depend on where the network cuts it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.sse import DONE, EventSplitter, event_data, json_event

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


def test_data_of_several_lines_is_joined_and_comments_have_none() -> None:
    assert event_data(b"event: x\ndata: a\ndata: b\n\n") == b"a\nb"
    assert event_data(b": keep-alive\n\n") is None
    assert event_data(DONE) == b"[DONE]"
    assert event_data(json_event({"a": 1})) == b'{"a":1}'

"""Server-sent events as bytes: split a stream into events, build the few events of our own."""

from __future__ import annotations

import orjson

DONE = b"data: [DONE]\n\n"
_PREFIX = b"data:"


class EventSplitter:
    """Cuts a byte stream at blank lines, whatever the network's chunk borders are.

    ``feed`` returns the complete events, each with its blank line, in the bytes the server sent;
    ``rest`` holds what has not ended yet.
    """

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that end in ``data``; keeps the rest for the next call."""
        buffer = self.rest + data if self.rest else data
        if b"\r" in buffer:
            return self._feed_crlf(buffer)
        parts = buffer.split(b"\n\n")
        self.rest = parts.pop()
        return [part + b"\n\n" for part in parts if part]

    def _feed_crlf(self, buffer: bytes) -> list[bytes]:
        # A lone CR at the end may be half of a CRLF: leave it for the next feed.
        held = b""
        if buffer.endswith(b"\r"):
            buffer, held = buffer[:-1], b"\r"
        parts = buffer.replace(b"\r\n", b"\n").split(b"\n\n")
        self.rest = parts.pop() + held
        return [part + b"\n\n" for part in parts if part]


def event_data(event: bytes) -> bytes | None:
    """The payload of an event, or None for a comment or another field."""
    if event.startswith(_PREFIX) and event.find(b"\n", 0, len(event) - 2) < 0:
        return event[len(_PREFIX) :].strip()
    lines = [
        line[len(_PREFIX) :].strip() for line in event.split(b"\n") if line.startswith(_PREFIX)
    ]
    return b"\n".join(lines) if lines else None


def json_event(payload: object) -> bytes:
    """One event whose data is ``payload`` as compact JSON."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"

"""Server-sent events as bytes: split a stream into events, build the few events of our own."""

from __future__ import annotations

import orjson

from entrogate.errors import UpstreamProtocol

DONE = b"data: [DONE]\n\n"
_PREFIX = b"data:"
MAX_EVENT_BYTES = 32 * 2**20
_MARK = b"\xef\xbb\xbf"


class EventSplitter:
    """Cuts a byte stream at blank lines, whatever the network's chunk borders are.

    ``feed`` returns the complete events, each with its blank line, in the bytes the server sent;
    what has not ended is kept. Lines may end in LF, CRLF or CR; a byte order mark at the beginning
    is dropped (WHATWG HTML, "Parsing an event stream").
    """

    __slots__ = ("_begun", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of an event that has not ended
        self._size = 0
        self._begun = False

    @property
    def waiting(self) -> bool:
        """Has an event begun that has not ended?"""
        return bool(self._pieces)

    @property
    def rest(self) -> bytes:
        """What has come of an event that has not ended."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that end in ``data``.

        Raises UpstreamProtocol for an event that grows without an end.
        """
        if not self._begun:
            data = self.rest + data
            self._keep(b"")
            if len(data) < len(_MARK) and _MARK.startswith(data):
                self._keep(data)
                return []
            self._begun = True
            data = data.removeprefix(_MARK)
        if self._pieces:
            if not _may_end(self._pieces[-1], data):
                self._add(data)
                return []
            data = b"".join([*self._pieces, data])
        elif len(data) > 2 and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            return [data]  # one whole event: what a server sends while it decodes
        return self._split(data)

    def finish(self) -> list[bytes]:
        """The last event, where the stream ended after its line and without a blank one."""
        rest = self.rest.rstrip(b"\r")
        self._keep(b"")
        return [rest.rstrip(b"\n") + b"\n\n"] if rest.endswith(b"\n") else []

    def _split(self, buffer: bytes) -> list[bytes]:
        held = b""
        if b"\r" in buffer:
            # A lone CR at the end may be half of a CRLF: leave it for the next feed.
            if buffer.endswith(b"\r"):
                buffer, held = buffer[:-1], b"\r"
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        parts = buffer.split(b"\n\n")
        self._keep(parts.pop() + held)
        return [part + b"\n\n" for part in parts if part]

    def _keep(self, data: bytes) -> None:
        self._pieces, self._size = [], 0
        if data:
            self._add(data)

    def _add(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MAX_EVENT_BYTES:
            raise UpstreamProtocol(
                f"the model server sent an event of more than {MAX_EVENT_BYTES} bytes"
            )


def _may_end(before: bytes, data: bytes) -> bool:
    """Can an event end in ``data``, which follows ``before``?"""
    return b"\n\n" in data or b"\r" in data or (before[-1:] in b"\r\n" and data[:1] == b"\n")


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

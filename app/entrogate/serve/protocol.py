"""uvicorn's HTTP protocol with bounds on what surrounds a body: request line, headers, trailers.

httptools bounds neither their size nor their time, and none of our code, not even authentication,
runs before they are complete.

It also stops at an offer to change the protocol (`Upgrade: h2c`) and leaves the body unread. A
server may ignore such an offer, so the request is parsed again without it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from entrogate.wire.errors import error_body

HEAD_LIMIT_BYTES = 64 * 2**10
"""More than that is refused; what one read of the socket brings is still looked at."""


def http_protocol(
    *, head_timeout_seconds: float, on_refused: Callable[[str], None]
) -> type[asyncio.Protocol]:
    """The class that uvicorn makes for each connection; ``on_refused`` is told the error's code."""
    limits = {"head_timeout_seconds": head_timeout_seconds, "on_refused": staticmethod(on_refused)}
    return type("BoundedHttpProtocol", (_Bounded,), limits)


class _Parser(httptools.HttpRequestParser):
    """Goes on after an offer of another protocol as if there had been none."""

    def __init__(self, protocol: _Bounded) -> None:
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: bytes | bytearray | memoryview | array[int]) -> None:
        parser, rest = self, memoryview(data)
        while True:
            try:
                super(_Parser, parser).feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                parser = self._protocol.decline_upgrade()
                if parser is None:
                    return
                rest = rest[offer.args[0] :]
            else:
                return


class _Bounded(HttpToolsProtocol):
    """Abstract: `http_protocol` says what is missing."""

    head_timeout_seconds: ClassVar[float]
    on_refused: ClassVar[Callable[[str], None]]

    _in_head = False
    _has_moved = False  # by the data that is being parsed: a body grew, a request ended
    _still_bytes = 0  # since it last has
    _patience: asyncio.TimerHandle | None = None
    _in_body = False
    _is_offer = False  # the request that is being parsed asks for another protocol

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = self._new_parser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_moved = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._patience is None:  # one that comes whole pays for no timer
            self._wait()
        self._still_bytes = 0 if self._has_moved else self._still_bytes + len(data)
        if self._still_bytes > HEAD_LIMIT_BYTES:
            said = f"the headers are longer than {HEAD_LIMIT_BYTES} bytes"
            self._refuse(431, said, "headers_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait_no_more()
        self._is_offer = self.parser.should_upgrade()
        if not self._is_offer:
            self._in_body = True
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_offer:  # the body comes after the second parsing
            return
        self._in_body = False
        self._wait_no_more()
        self._has_moved = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Nobody reads what is left of a body that was answered; it must not take forever."""
        super().on_response_complete()
        cycle: Any = self.cycle
        if self._in_body and cycle.response_complete and not self.transport.is_closing():
            self._wait()

    def decline_upgrade(self) -> _Parser | None:
        """A parser that has read the headers again without their offer; None: it is refused."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = parser = self._new_parser()
        if method == b"CONNECT":
            self._refuse(405, "this server is no proxy: CONNECT is not served", "no_proxy")
            return None
        head = [method, b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                value = _without_upgrade(value)  # noqa: PLW2901
            if name not in (b"upgrade", b"http2-settings") and value:
                head += [name, b": ", value, b"\r\n"]
        parser.feed_data(b"".join([*head, b"\r\n"]))
        return parser

    def _new_parser(self) -> _Parser:
        parser = _Parser(self)
        if hasattr(parser, "set_dangerous_leniencies"):  # as uvicorn has it
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.head_timeout_seconds, self._late)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        if not self._in_head:  # nothing came at all, or a body that was answered long ago
            self.transport.close()
            return
        said = f"the headers did not come in {self.head_timeout_seconds:g} s"
        self._refuse(408, said, "headers_timeout")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP request is refused in the envelope, as all else is."""
        self._refuse(400, msg, "invalid_http")

    def _refuse(self, status: int, said: str, code: str) -> None:
        type(self).on_refused(code)
        # The answer to an earlier request of the connection may still be on its way.
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            body = error_body(said, kind="invalid_request_error", code=code)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def _without_upgrade(connection: bytes) -> bytes:
    """What is left of a `Connection` header without the offer."""
    options = [option.strip() for option in connection.split(b",")]
    kept = [each for each in options if each.lower() not in (b"upgrade", b"http2-settings", b"")]
    return b", ".join(kept)

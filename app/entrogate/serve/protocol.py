"""uvicorn's HTTP protocol with bounds on what surrounds a body: request line, headers, trailers.

httptools takes them at any length and waits for them for ever, and no part of ours is asked before
they are complete, nor is any key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

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


class _Bounded(HttpToolsProtocol):
    """Abstract: `http_protocol` says what is missing."""

    head_timeout_seconds: ClassVar[float]
    on_refused: ClassVar[Callable[[str], None]]

    _in_head = False
    _has_moved = False  # by the data that is being parsed: a body grew, a request ended
    _still_bytes = 0  # since it last has
    _patience: asyncio.TimerHandle | None = None

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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_moved = True
        super().on_message_complete()

    def _wait(self) -> None:
        self._patience = self.loop.call_later(self.head_timeout_seconds, self._late)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _late(self) -> None:
        if not self._in_head:  # nothing came at all
            self.transport.close()
            return
        said = f"the headers did not come in {self.head_timeout_seconds:g} s"
        self._refuse(408, said, "headers_timeout")

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

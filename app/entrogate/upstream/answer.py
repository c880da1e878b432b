"""One answer of the model server, decoded and within its bounds, as it is read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Self

import aiohttp

from entrogate.errors import UpstreamError, UpstreamProtocol

_GZIP, _ZLIB_OR_GZIP, _RAW = 16 + zlib.MAX_WBITS, 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS
_DECODED_AT_ONCE = 2**20  # bytes that one call of zlib may make of what has arrived
_PLAIN = ("", "identity")
_MOST_TEXT = 255 * 2**10  # of an answer that only says why it failed

Classify = Callable[[Exception], UpstreamError]


class UpstreamAnswer:
    """Status, headers and body of an answer.

    The body can be read once: whole (``read``) or as it comes (``async for`` over the answer). What
    a proxy has compressed although we asked for it plain is decompressed. Reading raises
    UpstreamUnavailable when the server breaks off, UpstreamTimeout when it falls silent, and
    UpstreamProtocol when the body is malformed or longer than ``limit_bytes`` (decompressed).
    """

    __slots__ = (
        "_ahead",
        "_classify",
        "_decoder",
        "_limit_bytes",
        "_response",
        "_taken",
        "_where",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        limit_bytes: int,
        where: str,
        classify: Classify,
    ) -> None:
        self.status = response.status
        self._response = response
        self._limit_bytes = limit_bytes
        self._where = where
        self._classify = classify
        self._taken = 0
        self._ahead = b""
        self._decoder = self._find_decoder()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers as they came, by name in any case."""
        return self._response.headers

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case; empty when the server named none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """The whole body, or what is left of it."""
        parts = [part async for part in self]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def peek(self) -> bytes:
        """The first bytes of the body, which reading it still gives."""
        self._ahead = await anext(self, b"")
        return self._ahead

    async def read_text(self, most_bytes: int = _MOST_TEXT) -> bytes:
        """The beginning of a body that only explains a failure; the rest is not waited for."""
        parts: list[bytes] = []
        size = 0
        async for part in self:
            parts.append(part)
            size += len(part)
            if size >= most_bytes:
                break
        return b"".join(parts)[:most_bytes]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        while True:
            data = b"" if self._decoder is None else self._decoder.more()
            if not data:
                try:
                    data = await self._response.content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise self._classify(error) from error
                if not data:
                    self._check_end()
                    raise StopAsyncIteration
                if self._decoder is not None:
                    data = self._decoder.feed(data)
            self._taken += len(data)
            if self._taken > self._limit_bytes:
                raise UpstreamProtocol(
                    f"the answer of the model server at {self._where} is longer than"
                    f" upstream.answer_limit_bytes ({self._limit_bytes} bytes)"
                )
            if data:
                return data

    def _find_decoder(self) -> _Decoder | None:
        coding = self.headers.get("content-encoding", "").strip().lower()
        if coding in _PLAIN:
            return None
        if coding in ("gzip", "x-gzip", "deflate"):
            return _Decoder(self._where, coding)
        raise UpstreamProtocol(
            f"the answer of the model server at {self._where} is compressed with"
            f" {coding[:40]!r}, although it was asked for uncompressed: switch compression off in"
            " the proxy before it, or let it use gzip"
        )

    def _check_end(self) -> None:
        if self._decoder is not None and not self._decoder.whole:
            raise UpstreamProtocol(f"the compressed answer from {self._where} ends too early")


class _Decoder:
    """gzip or deflate, some bytes at a time: a small body never becomes a large one at once."""

    __slots__ = ("_begun", "_coding", "_inflate", "_is_full", "_left", "_where", "whole")

    def __init__(self, where: str, coding: str) -> None:
        self.whole = True  # nothing has begun that would have to end
        self._where = where
        self._coding = coding
        self._inflate = zlib.decompressobj(_ZLIB_OR_GZIP)
        self._begun = False
        self._left = b""
        self._is_full = False  # zlib stopped at the limit and may hold more, all input consumed

    def feed(self, data: bytes) -> bytes:
        """What ``data`` decodes to, in part; ask for ``more`` until it is empty."""
        if not self._begun:
            self._begun = True
            self.whole = False
            # Some servers send deflate without the header that the standard asks for.
            if self._coding == "deflate" and data[0] & 0x0F != zlib.DEFLATED:
                self._inflate = zlib.decompressobj(_RAW)
        self._left += data
        return self.more()

    def more(self) -> bytes:
        """The next part of what has arrived already; empty when that is used up."""
        if not self._left and not self._is_full:
            return b""
        if self._inflate.eof:  # a further gzip member
            self._inflate = zlib.decompressobj(_GZIP)
        try:
            data = self._inflate.decompress(self._left, _DECODED_AT_ONCE)
        except zlib.error as error:
            raise UpstreamProtocol(
                f"the answer from {self._where} says that it is {self._coding} and is not: {error}"
            ) from None
        self._is_full = len(data) == _DECODED_AT_ONCE and not self._inflate.eof
        self._left = (
            self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        )
        self.whole = self._inflate.eof and not self._left
        return data

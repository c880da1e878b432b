"""The connection to vLLM: one aiohttp pool for the data plane (see docs/decisions/0003)."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp import http_exceptions

from entrogate.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from entrogate.settings import UpstreamSettings
from entrogate.upstream.answer import UpstreamAnswer

_LARGE_BODY_BYTES = 256 * 1024
_log = logging.getLogger("entrogate.upstream")

# uvicorn, and so vLLM, closes an idle connection after 5 s: let go of it first.
_KEEPALIVE_SECONDS = 4.0
_TRACE_HEADERS = ("traceparent", "tracestate")
_MOST_DETAIL = 300
_USERINFO = re.compile(r"^([^/]*://)?[^/]*@")


def shown_url(url: str) -> str:
    """``url`` as messages and logs say it: without the user and the password it may hold."""
    return _USERINFO.sub(r"\1", url)


class _Unasked(aiohttp.ServerDisconnectedError):
    """A connection of the pool has said something since its last answer."""


class _Request(aiohttp.ClientRequest):
    """Goes out only on a connection that is silent.

    What a server says there unasked (a second answer, a 408 before it closes) would be taken for
    the answer to this request, although it may be meant for another client.
    """

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:
            raise _Unasked("the connection is no longer clean")  # it is closed by our caller
        return await super().send(conn)


class UpstreamClient:
    """Posts bodies to vLLM and hands back its answers as they come.

    ``base_url`` has no ``/v1``; a user and a password in it are sent as basic authentication where
    the settings hold no API key. Redirects are not followed, and cookies are not kept: one would
    carry credentials elsewhere, the other carry one tenant's state into another's requests.
    """

    def __init__(self, settings: UpstreamSettings, base_url: str) -> None:
        self.base_url = shown_url(base_url.rstrip("/"))
        self._settings = settings
        self._authorization = _authorization(settings, base_url)
        self.on_lost: Callable[[], None] = lambda: None  # a connection was refused
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._settings.max_connections, keepalive_timeout=_KEEPALIVE_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._settings.connect_timeout_seconds,
                sock_read=self._settings.read_timeout_seconds,
            ),
            auto_decompress=False,  # unbounded in aiohttp: `answer` does it
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=_Request,
            read_bufsize=2**20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def headers(self, client_headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """Headers for vLLM: our key if we have one, else the client's own authorisation.

        The client's trace goes on in vLLM.
        """
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if client_headers is not None:
            headers |= {
                name: client_headers[name] for name in _TRACE_HEADERS if name in client_headers
            }
        if self._authorization is not None:
            headers["authorization"] = self._authorization
        elif client_headers is not None and "authorization" in client_headers:
            headers["authorization"] = client_headers["authorization"]
        elif client_headers is not None and "x-api-key" in client_headers:  # Anthropic's clients
            headers["authorization"] = f"Bearer {client_headers['x-api-key']}"
        return headers

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[UpstreamAnswer]:
        """Send a request; leaving the block before the end of the answer aborts it upstream.

        The answer's status is 200 or one of an error (400 to 599). Raises UpstreamUnavailable,
        UpstreamTimeout or UpstreamProtocol; so does reading the answer.
        """
        try:
            response = await self._send(method, path, body, headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                self.on_lost()
            raise self.classified(error) from error
        try:
            self._check_status(response, path)
            yield UpstreamAnswer(
                response,
                limit_bytes=self._settings.answer_limit_bytes,
                where=self.base_url,
                classify=self.classified,
            )
        finally:
            if not response.closed:
                response.close()

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise UpstreamError("the upstream client is not open")
        session, url = self._session, self.base_url + path
        sent = {**self.headers(), **headers} if headers is not None else self.headers()

        def ask() -> Awaitable[aiohttp.ClientResponse]:
            # A large body as a file: it is written in pieces, with the loop free between them.
            large = body is not None and len(body) > _LARGE_BODY_BYTES
            data = io.BytesIO(body or b"") if large else body
            return session.request(method, url, data=data, headers=sent, allow_redirects=False)

        async def again() -> aiohttp.ClientResponse:
            while True:  # each time, the pool has one connection less
                try:
                    return await ask()
                except _Unasked:
                    _log.warning("upstream.unasked path=%s", path)

        try:
            return await again()
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # A kept-alive connection that the server closed while we wrote: nothing was answered,
            # and the client has received nothing, so one more try on a fresh connection is safe.
            return await again()

    def _check_status(self, response: aiohttp.ClientResponse, path: str) -> None:
        status = response.status
        if status == 200 or 400 <= status <= 599:
            return
        said = f"the model server at {self.base_url} answered {path} with status {status}"
        if 300 <= status <= 399:
            target = response.headers.get("location", "")[:200]
            _log.warning("upstream.redirected status=%d path=%s to=%r", status, path, target)
            raise UpstreamProtocol(
                f"{said}, a redirect, and redirects are not followed: name the server's own URL"
                " with --upstream"
            )
        raise UpstreamProtocol(f"{said}; want 200 or an error")

    def classified(self, error: Exception) -> UpstreamError:
        """The error of ours that says what aiohttp's means."""
        where = self.base_url
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamUnavailable(f"no connection to the model server at {where} in time")
        if isinstance(error, TimeoutError):
            seconds = self._settings.read_timeout_seconds
            return UpstreamTimeout(f"the model server at {where} sent nothing for {seconds:g} s")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamUnavailable(
                f"cannot connect to the model server at {where}: {_why(error)}"
            )
        said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        detail = " ".join((said or type(error).__name__).split())[:_MOST_DETAIL]
        if isinstance(error, aiohttp.ClientResponseError):
            return UpstreamProtocol(f"the model server at {where} does not speak HTTP: {detail}")
        if _is_malformed(error):
            return UpstreamProtocol(f"the body from the model server at {where}: {detail}")
        if isinstance(error, aiohttp.ClientPayloadError):
            # Its own words differ between aiohttp's versions, and say no more.
            return UpstreamUnavailable(f"the model server at {where} broke off its answer")
        return UpstreamUnavailable(f"the model server at {where} broke off its answer: {detail}")


def _is_malformed(error: Exception) -> bool:
    """Did the server send what is no HTTP, and not merely too little of it?"""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, http_exceptions.ContentLengthError):
            return False
        if isinstance(cause, http_exceptions.HttpProcessingError):
            return "Not enough data" not in str(cause)
        cause = cause.__cause__
    return False


def _authorization(settings: UpstreamSettings, base_url: str) -> str | None:
    """What we authenticate with: the key of the settings, or what the URL holds."""
    if settings.api_key is not None:
        return f"Bearer {settings.api_key.get_secret_value()}"
    parts = urlsplit(base_url)
    if parts.username is None:
        return None
    both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {b64encode(both.encode()).decode()}"


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection, without the address: aiohttp's own words repeat it."""
    if isinstance(error, aiohttp.ClientSSLError):
        return str(error)
    cause = error.os_error
    if cause.errno is None or isinstance(cause, socket.gaierror):
        return cause.strerror or str(cause)
    return os.strerror(cause.errno)

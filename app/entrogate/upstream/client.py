"""The connection to vLLM: one aiohttp pool for the data plane (see docs/decisions/0003)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Self

import aiohttp

from entrogate.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from entrogate.settings import UpstreamSettings

# uvicorn, and so vLLM, closes an idle connection after 5 s: let go of it first.
_KEEPALIVE_SECONDS = 4.0
_TRACE_HEADERS = ("traceparent", "tracestate")
_USERINFO = re.compile(r"^([^/]*://)?[^/]*@")


def shown_url(url: str) -> str:
    """``url`` as messages and logs say it: without the user and the password it may hold."""
    return _USERINFO.sub(r"\1", url)


class UpstreamClient:
    """Posts bodies to vLLM and hands back its answers as they come.

    ``base_url`` has no ``/v1``. It can be changed while in use: a managed vLLM may come back on
    another port.
    """

    def __init__(self, settings: UpstreamSettings, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    @property
    def shown_url(self) -> str:
        return shown_url(self.base_url)

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
            auto_decompress=False,
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
        headers = {"content-type": "application/json"}
        if client_headers is not None:
            headers |= {
                name: client_headers[name] for name in _TRACE_HEADERS if name in client_headers
            }
        if self._settings.api_key is not None:
            headers["authorization"] = f"Bearer {self._settings.api_key.get_secret_value()}"
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
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request; leaving the block before the end of the answer aborts it upstream.

        Raises UpstreamUnavailable or UpstreamTimeout, also while the answer is read.
        """
        try:
            response = await self._send(method, path, body, headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._classified(error) from error
        try:
            with self.failures():
                yield response
        finally:
            if not response.closed:
                response.close()

    @contextmanager
    def failures(self) -> Generator[None]:
        """Turn what aiohttp raises in the block into an UpstreamError.

        Needed where an answer is read outside of the block of ``request``.
        """
        try:
            yield
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._classified(error) from error

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise UpstreamError("the upstream client is not open")
        url = self.base_url + path
        kwargs = {"data": body, "headers": headers or self.headers()}
        try:
            return await self._session.request(method, url, **kwargs)  # pyright: ignore[reportArgumentType]
        except aiohttp.ServerDisconnectedError:
            # A kept-alive connection that the server closed while we wrote: nothing was answered,
            # and the client has received nothing, so one more try on a fresh connection is safe.
            return await self._session.request(method, url, **kwargs)  # pyright: ignore[reportArgumentType]

    def _classified(self, error: Exception) -> UpstreamError:
        where = self.shown_url
        if isinstance(error, (aiohttp.ConnectionTimeoutError,)):
            return UpstreamUnavailable(f"no connection to the model server at {where} in time")
        if isinstance(error, TimeoutError):
            seconds = self._settings.read_timeout_seconds
            return UpstreamTimeout(f"the model server at {where} sent nothing for {seconds:g} s")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamUnavailable(f"cannot connect to the model server at {where}: {error}")
        detail = str(error) or type(error).__name__
        return UpstreamUnavailable(f"the model server at {where} broke off its answer: {detail}")

"""Sends answers while watching the client: when it goes away, the work for it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from entrogate.wire.errors import error_event
from entrogate.wire.sse import DONE

_log = logging.getLogger("entrogate.serve")
WEIGHTS_HEADER = "x-entrogate-weight-version"
_ENDING_SECONDS = 5.0  # for a request that was cancelled to let go of what it holds
# A proxy between us and the client must pass each event on as it comes.
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
Envelope = Callable[[int, bytes], tuple[int, bytes]]
"""Status and body of an error in OpenAI's envelope, as the API that was asked says it."""


class WatchedResponse(Response):
    """Runs ``work`` until it is done or the client is gone, whichever comes first.

    ``on_gone`` is called before the work is cancelled for a client that went away.
    """

    def __init__(
        self,
        work: Callable[[Send], Awaitable[None]],
        on_gone: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._work = work
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Run the work; cancel it as soon as the client disconnects. Neither is an error."""
        work = asyncio.ensure_future(self._work(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if gone.done() and not work.done() and self._on_gone is not None:
                self._on_gone()
            gone.cancel()
            if not work.done():
                work.cancel()
                # Its place and its body's memory are given back by whoever called us.
                await asyncio.wait((work,), timeout=_ENDING_SECONDS)
        try:
            await work
        except (asyncio.CancelledError, ClientDisconnect, OSError):
            _log.info("request.abandoned")


def chat_last_words(error: Exception) -> bytes:
    """The end of a chat stream that broke off."""
    return error_event(error) + DONE


async def send_stream(
    send: Send,
    events: AsyncIterator[bytes],
    headers: Mapping[str, str],
    on_first: Callable[[], None],
    last_words: Callable[[Exception], bytes] = chat_last_words,
) -> None:
    """Send server-sent events; an error that nobody expected becomes the last of them.

    ``on_first`` is called after the first one.
    """
    await _start(send, 200, {**_STREAM_HEADERS, **headers})
    try:
        async for data in events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            on_first()
            break  # so that later events, in the loop below, pay nothing for it
        async for data in events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except Exception as error:  # noqa: BLE001  (the request boundary: the stream must get an end)
        _log.exception("request.failed")
        await send({"type": "http.response.body", "body": last_words(error), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_body(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Send one body of JSON."""
    sized = {"content-type": "application/json", **headers, "content-length": str(len(body))}
    await _start(send, status, sized)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _disconnected(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return

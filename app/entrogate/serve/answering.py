"""An answer on its way, watched so that a time limit can still give it an end."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Message, Send

_NUMBERED = "/v1/responses"  # its events have numbers


class Answering:
    """Passes an answer on and knows how far it is; ``headers`` are added to every answer."""

    def __init__(self, send: Send, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._counts = path.startswith(_NUMBERED)
        self._is_over = False
        self.begun = False
        self.is_stream = False
        self.events_sent = 0

    async def send(self, message: Message) -> None:
        """Pass a message on, unless the answer got its end from elsewhere."""
        if self._is_over:
            return
        if not self.begun:
            self.begun = True
            self.is_stream = _is_stream(message.get("headers", ()))
            message = self._with_headers(message)
        else:
            if self._counts:
                self.events_sent += message.get("body", b"").count(b"\ndata:")
            self._is_over = not message.get("more_body", False)
        await self._send(message)

    def take_over(self) -> Send | None:
        """What sends from now on: whoever is being cancelled may still say something.

        None: nothing is left to say.
        """
        if self._is_over:
            return None
        self._is_over = True

        async def end(message: Message) -> None:
            await self._send(self._with_headers(message))

        return end

    def _with_headers(self, message: Message) -> Message:
        if not self._headers or message["type"] != "http.response.start":
            return message
        return {**message, "headers": [*message.get("headers", ()), *self._headers]}


def _is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(k == b"content-type" and v.startswith(b"text/event-stream") for k, v in headers)

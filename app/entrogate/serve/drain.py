"""The end of a gateway: running requests get a time, then an end that their clients understand."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from entrogate.wire.messages.errors import anthropic_error
from entrogate.wire.sse import DONE

_MESSAGES, _RESPONSES = "/v1/messages", "/v1/responses"


@dataclass(slots=True)
class Drain:
    """Knows the time limits of the running requests, and brings them forward."""

    _limits: set[asyncio.Timeout] = field(default_factory=set[asyncio.Timeout])
    _ends_at: float | None = None  # of the loop's clock

    @property
    def begun(self) -> bool:
        """Has the gateway been told to stop? It is not ready any more."""
        return self._ends_at is not None

    def begin(self, seconds: float) -> None:
        """What runs has ``seconds`` to end by itself; so has what still comes."""
        self._ends_at = asyncio.get_running_loop().time() + seconds
        for limit in self._limits:
            self._bring_forward(limit)

    @contextmanager
    def watching(self, limit: asyncio.Timeout) -> Generator[None]:
        """The time of one request, whose limit was entered."""
        self._limits.add(limit)
        self._bring_forward(limit)
        try:
            yield
        finally:
            self._limits.discard(limit)

    def _bring_forward(self, limit: asyncio.Timeout) -> None:
        if self._ends_at is None or limit.expired():
            return
        when = limit.when()
        if when is None or self._ends_at < when:
            limit.reschedule(self._ends_at)


def last_event(path: str, status: int, body: bytes, *, events_sent: int) -> bytes:
    """The end of a stream of the API at ``path``; ``body`` is the error in OpenAI's envelope."""
    if path.startswith(_MESSAGES):
        return _named(anthropic_error(status, body)[1])
    if path.startswith(_RESPONSES):
        error = orjson.loads(body)["error"]
        told = {name: error[name] for name in ("code", "message", "param")}
        return _named({"type": "error", "sequence_number": events_sent, **told})
    return b"data: " + body + b"\n\n" + DONE


def _named(event: dict[str, Any]) -> bytes:
    return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"

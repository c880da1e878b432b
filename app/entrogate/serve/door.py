"""Doors: the APIs through which a turn can be asked for, and how each shows it.

A door's request becomes a chat request (`wire`), runs as every turn does, and the chat answer that
comes out is translated on its way to the client. Chat itself is the door that changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol
from entrogate.serve.sending import Envelope, chat_last_words
from entrogate.turn.session import CHAT
from entrogate.wire.answer import DoorAnswer
from entrogate.wire.errors import describe, is_error_body, upstream_error_body
from entrogate.wire.messages.errors import anthropic_error
from entrogate.wire.sse import EventSplitter

RESPONSES_ROUTE = "/v1/responses"
MESSAGES_ROUTE = "/v1/messages"


def _openai(status: int, body: bytes) -> tuple[int, bytes]:
    """vLLM's own error as it is; in an envelope what a server says that has failed altogether."""
    return status, body if is_error_body(body) else upstream_error_body(status, body)


def _anthropic(status: int, body: bytes) -> tuple[int, bytes]:
    status, envelope = anthropic_error(status, body)
    return status, orjson.dumps(envelope)


def envelope_of(path: str) -> Envelope:
    """How errors are said to whoever asked for ``path``."""
    return _anthropic if path.startswith(MESSAGES_ROUTE) else _openai


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One request's way out; ``answer`` is None where the chat answer goes out as it is."""

    route: str
    answer: DoorAnswer | None
    request_id_header: str | None = None  # what the API calls `x-request-id`

    @property
    def error(self) -> Envelope:
        """How an error before the answer is written: in the envelope of the API that was asked."""
        return envelope_of(self.route)

    @property
    def last_words(self) -> Callable[[Exception], bytes]:
        """The end of a stream that a fault of ours broke off."""
        answer = self.answer
        return chat_last_words if answer is None else lambda error: _failure(answer, error)

    def headers(self, request_id: str) -> dict[str, str]:
        """The header that carries the request's id, where the API has one of its own."""
        return {} if self.request_id_header is None else {self.request_id_header: request_id}


CHAT_DOOR = Door(route=CHAT, answer=None)


async def translated(
    events: AsyncGenerator[bytes], answer: DoorAnswer, on_fault: Callable[[str], None]
) -> AsyncGenerator[bytes]:
    """A chat stream in the form of another API. ``on_fault`` is told why it broke off."""
    splitter = EventSplitter()
    out: list[bytes] = []
    try:
        async for data in events:
            # One by one, not as a list: those before a fault are kept.
            out.extend(answer.feed(event) for event in splitter.feed(data))
            said = b"".join(out)
            out.clear()
            if said:
                yield said
    except UpstreamProtocol as error:
        on_fault(str(error))
        yield b"".join([*out, _failure(answer, error)])
    finally:
        await events.aclose()


def _failure(answer: DoorAnswer, error: Exception) -> bytes:
    shown = error if isinstance(error, EntrogateError) else Exception()
    return answer.fail(orjson.loads(describe(shown)[1])["error"])

"""A chat answer on its way into another API's form: chunks in, that API's events out.

The same state makes the events of a stream and the body of a whole answer, so that a folded stream
and a body cannot differ. What a subclass adds is how its API writes the blocks of an answer, which
come one after the other: reasoning, text, calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from entrogate.errors import UpstreamProtocol
from entrogate.wire.chunks import ChunkChoice, Message, ToolCallPart, Usage
from entrogate.wire.sse import event_data

RESPONSE_PREFIX, MESSAGE_PREFIX = "resp_", "msg_"
Json = dict[str, Any]
Kind = Literal["reasoning", "text", "call"]


class CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class ReasoningTokens(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class SaidUsage(Usage, gc=False):
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class SaidChoice(ChunkChoice):
    stop_reason: int | str | None = None


class SaidChunk(msgspec.Struct):
    """A chunk, with the fields that only the other APIs look at."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[SaidChoice] = []
    usage: SaidUsage | None = None
    error: Json | None = None
    entrogate: Json | None = None  # of an answer with `x-entrogate-debug`


class BodyChoice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Body(msgspec.Struct):
    choices: list[BodyChoice]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: SaidUsage | None = None
    entrogate: Json | None = None


_decode_chunk = msgspec.json.Decoder(SaidChunk).decode
_decode_body = msgspec.json.Decoder(Body).decode


@dataclass(slots=True, kw_only=True)
class Block:
    """One piece of an answer; ``parts`` is its text, or the arguments of a call."""

    kind: Kind
    index: int
    call_index: int | None = None
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list[str])

    @property
    def text(self) -> str:
        return "".join(self.parts)


class DoorAnswer(ABC):
    """Takes a chat answer, once; ``feed`` for a stream or ``fold`` for a body."""

    def __init__(self) -> None:
        self.id = ""
        self.created = 0
        self.model = ""
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.usage: SaidUsage | None = None
        self.entrogate: Json | None = None
        self._begun = False
        self._ended = False
        self._open: Block | None = None
        self._blank = ""  # whitespace that may be the beginning of a text

    def feed(self, event: bytes) -> bytes:
        """The events for one event of a chat stream."""
        data = event_data(event)
        if data is None or self._ended:
            return b""
        if data == b"[DONE]":
            self._ended = True
            return self._close() + self.ended()
        chunk = _decode_chunk(data)
        if chunk.error is not None:
            return self.fail(chunk.error)
        out = b"" if self._begun else self._begin(chunk.id, chunk.created, chunk.model)
        for choice in chunk.choices:
            out += self._take(choice.delta)
            if choice.finish_reason is not None:
                self.finish_reason, self.stop_reason = choice.finish_reason, choice.stop_reason
        self.usage = chunk.usage or self.usage
        self.entrogate = chunk.entrogate or self.entrogate
        return out

    def fail(self, error: Json) -> bytes:
        """The end of a stream that broke off; ``error`` is what stands in OpenAI's envelope."""
        self._ended = True
        return self.failed(error)

    def fold(self, raw: bytes) -> bytes:
        """The body for the body of a chat completion."""
        body = _decode_body(raw)
        self._begin(body.id, body.created, body.model)
        choice = body.choices[0]
        for position, part in enumerate(choice.message.tool_calls or ()):
            part.index = position  # a body does not number its calls
        self._take(choice.message)
        self._close()
        self.finish_reason, self.stop_reason = choice.finish_reason, choice.stop_reason
        self.usage, self.entrogate = body.usage, body.entrogate
        return orjson.dumps(self.body())

    def _begin(self, chat_id: str, created: int, model: str) -> bytes:
        self._begun = True
        self.id, self.created, self.model = chat_id, created, model
        return self.begun()

    def _take(self, said: Message) -> bytes:
        out = b""
        if said.thought:
            out += self._say("reasoning", said.thought)
        if said.content:
            out += self._say("text", said.content)
        for part in said.tool_calls or ():
            out += self._call(part)
        return out

    def _say(self, kind: Kind, text: str) -> bytes:
        if self._open is not None and self._open.kind == kind:
            return self._grow(text)
        if kind == "text":
            # What stands between the reasoning and a call: vLLM's bodies leave it out.
            self._blank += text
            if not self._blank.strip():
                return b""
            text = self._blank
        return self._next(Block(kind=kind, index=len(self.blocks))) + self._grow(text)

    def _call(self, part: ToolCallPart) -> bytes:
        out, function = b"", part.function
        if self._open is None or self._open.call_index != part.index:
            if any(block.call_index == part.index for block in self.blocks):
                raise UpstreamProtocol("the upstream went on with a call after it began another")
            out = self._next(
                Block(
                    kind="call",
                    index=len(self.blocks),
                    call_index=part.index,
                    call_id=part.id or "",
                    name=(function.name if function is not None else None) or "",
                )
            )
        if function is not None and function.arguments:
            out += self._grow(function.arguments)
        return out

    def _next(self, block: Block) -> bytes:
        closed, self._blank = self._close(), ""
        self.blocks.append(block)
        self._open = block
        return closed + self.opened(block)

    def _grow(self, text: str) -> bytes:
        block = self.blocks[-1]
        block.parts.append(text)
        return self.grown(block, text)

    def _close(self) -> bytes:
        block, self._open = self._open, None
        return b"" if block is None else self.closed(block)

    @property
    def calls(self) -> bool:
        return any(block.kind == "call" for block in self.blocks)

    @abstractmethod
    def begun(self) -> bytes:
        """The events that open the answer."""

    @abstractmethod
    def opened(self, block: Block) -> bytes: ...

    @abstractmethod
    def grown(self, block: Block, text: str) -> bytes: ...

    @abstractmethod
    def closed(self, block: Block) -> bytes: ...

    @abstractmethod
    def ended(self) -> bytes:
        """The events that end an answer whose turn is committed."""

    @abstractmethod
    def failed(self, error: Json) -> bytes: ...

    @abstractmethod
    def body(self) -> Json:
        """The answer so far as one object."""


def chat_id(answer_id: str) -> str:
    """The id under which a turn is stored, for the id that a client of any door has of it."""
    return answer_id.removeprefix(RESPONSE_PREFIX).removeprefix(MESSAGE_PREFIX)


def named_event(payload: Json) -> bytes:
    """An event that is named after the ``type`` of its payload."""
    return b"event: %s\ndata: %s\n\n" % (payload["type"].encode(), orjson.dumps(payload))

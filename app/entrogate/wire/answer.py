"""A chat answer on its way into another API's form: chunks in, that API's events out.

The same state makes the events of a stream and the body of a whole answer, so that a folded stream
and a body cannot differ. What a subclass adds is how its API writes the blocks of an answer:
reasoning, text, calls. Calls come in the order of their indexes, each when the one before it is
whole, however their deltas mix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import msgspec
import orjson

from entrogate.errors import UpstreamProtocol, no_chunk
from entrogate.wire.body import to_json
from entrogate.wire.calls import AccumulatedCall, CallAccumulator
from entrogate.wire.chunks import Message, ToolCallPart
from entrogate.wire.dialects import uniform
from entrogate.wire.logprobs import TextTokens
from entrogate.wire.said import (
    Json,
    SaidChunk,
    SaidToken,
    SaidUsage,
    WholeAnswer,
    decode_said,
    decode_whole,
    tokens_of,
)
from entrogate.wire.sse import event_data

RESPONSE_PREFIX, MESSAGE_PREFIX = "resp_", "msg_"
Kind = Literal["reasoning", "text", "refusal", "call"]
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)
_BROKEN = ("abort", "error")
_CHECKS = 16  # how often the arguments of an open call are tried for being whole


@dataclass(slots=True, kw_only=True)
class Block:
    """One piece of an answer; ``parts`` is its text, or the arguments of a call."""

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list[str])
    tokens: list[SaidToken] = field(default_factory=list[SaidToken])  # of a text, where asked for

    @property
    def text(self) -> str:
        """All pieces joined."""
        return "".join(self.parts)


class DoorAnswer(ABC):
    """Takes a chat answer, once; ``feed`` for a stream or ``fold`` for a body.

    Both raise UpstreamProtocol for an answer that cannot be said in the door's API.
    """

    streams_arguments: ClassVar[bool]
    """Do the arguments of a call go out as they come? If not, calls are said when all are whole."""

    def __init__(self, *, logprobs: bool = False) -> None:
        """``logprobs``: the client asked for those of the text."""
        self.id = ""
        self.created = 0
        self.model = ""
        self.blocks: list[Block] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.usage: SaidUsage | None = None
        self.entrogate: Json | None = None
        self.kv_transfer_params: Json | None = None
        self._begun = False
        self._ended = False
        self._choice: int | None = None  # the one that is told
        self._text: Block | None = None  # the block of text or reasoning that is open
        self._call: tuple[AccumulatedCall, Block] | None = None  # the call that is open
        self._calls = CallAccumulator()
        self._n_told = 0  # calls that were opened
        self._checks = _CHECKS
        self._tokens = TextTokens() if logprobs else None
        self._blank = ""  # whitespace that may be the beginning of a text

    def feed(self, event: bytes) -> bytes:
        """The events for one event of a chat stream."""
        data = event_data(event)
        if data is None or self._ended:
            return b""
        if data == b"[DONE]":
            return self._end()
        try:
            return self._feed(_read_said(data))
        except _UNREADABLE as error:
            raise no_chunk(error) from None

    def fail(self, error: Json) -> bytes:
        """The end of a stream that broke off; ``error`` is what stands in OpenAI's envelope."""
        self._ended = True
        return self.failed(error)

    def fold(self, raw: bytes) -> bytes:
        """The body for the body of a chat completion."""
        try:
            whole = _read_whole(raw)
            self._begin(whole.id, whole.created, whole.model)
            if not whole.choices:
                raise UpstreamProtocol("the upstream's answer has no choices")
            choice = whole.choices[0]
            for position, part in enumerate(choice.message.tool_calls or ()):
                part.index = position  # a body does not number its calls
            self.finish_reason, self.stop_reason = choice.finish_reason, choice.stop_reason
            self._take(choice.message, choice.logprobs)
        except _UNREADABLE as error:
            raise UpstreamProtocol(f"the upstream's answer is no completion: {error}") from None
        self.usage, self.entrogate = whole.usage, whole.entrogate
        self.kv_transfer_params = whole.kv_transfer_params
        self._close()
        return to_json(self.body())

    @property
    def calls(self) -> bool:
        """Whether the answer has a tool call."""
        return any(block.kind == "call" for block in self.blocks)

    @property
    def broken(self) -> str | None:
        """Why the answer is none, although the upstream ended it in good order."""
        if self.finish_reason not in _BROKEN:
            return None
        return f"the model server broke the answer off (finish_reason {self.finish_reason!r})"

    def _feed(self, chunk: SaidChunk) -> bytes:
        if chunk.error is not None:
            error: object = chunk.error
            said = cast("Json", error) if isinstance(error, dict) else {"message": str(error)}
            return self.fail(said)
        out = b"" if self._begun else self._begin(chunk.id, chunk.created, chunk.model)
        for choice in chunk.choices:
            if self._choice is None:
                self._choice = choice.index
            if choice.index != self._choice:
                continue  # nobody asked for another
            out += self._take(choice.delta, choice.logprobs)
            if choice.finish_reason is not None:
                self.finish_reason, self.stop_reason = choice.finish_reason, choice.stop_reason
        self.usage = chunk.usage or self.usage
        self.entrogate = chunk.entrogate or self.entrogate
        self.kv_transfer_params = chunk.kv_transfer_params or self.kv_transfer_params
        return out

    def _begin(self, chat_id: str, created: int, model: str) -> bytes:
        self._begun = True
        self.id, self.created, self.model = chat_id, created, model
        return self.begun()

    def _end(self) -> bytes:
        if self._choice is None:
            raise UpstreamProtocol("the upstream's answer has no choices")
        out = self._close()
        self._ended = True
        return out + self.ended()

    def _take(self, said: Message, logprobs: msgspec.Raw) -> bytes:
        if self._tokens is not None:
            self._tokens.add(tokens_of(logprobs))
        out = b""
        if said.thought:
            out += self._say("reasoning", said.thought)
        if said.content:
            out += self._say("text", said.content)
        if said.refusal:
            out += self._say("refusal", said.refusal)
        for part in said.tool_calls or ():
            self._calls.feed((part,))
            if self.streams_arguments:
                out += self._go_on(part)
        return out

    def _say(self, kind: Kind, text: str) -> bytes:
        out = b""
        if self._text is None or self._text.kind != kind:
            if kind == "text":
                # What stands between the reasoning and a call: vLLM's bodies leave it out.
                self._blank += text
                if not self._blank.strip():
                    return b""
                text = self._blank
            block = self._open(kind)
            out = self._close_text() + self.opened(block)
            self._text = block
        tokens = self._tokens.take(text) if self._tokens is not None else ()
        return out + self._grow(self._text, text, tokens if kind == "text" else ())

    def _go_on(self, part: ToolCallPart) -> bytes:
        """What can be told of the calls after a piece of one of them."""
        out = b""
        said = part.function.arguments if part.function is not None else None
        if said and self._call is not None and self._call[0].index == part.index:
            out += self._grow(self._call[1], said)
        elif said and part.index < self._n_told and said.strip():
            raise UpstreamProtocol("the upstream went on with a call whose arguments were whole")
        while (call := self._calls.get(self._n_told)) is not None:
            if not (call.is_named and call.upstream_id) or not self._call_is_whole():
                break
            out += self._begin_call(call)
        return out

    def _call_is_whole(self) -> bool:
        """Can the open call make room for the next one? Where that stays unknown, the end tells."""
        if self._call is None:
            return True
        block = self._call[1]
        if not block.parts or block.parts[-1].rstrip()[-1:] != "}" or self._checks <= 0:
            return False
        self._checks -= 1
        try:
            orjson.loads(block.text)
        except orjson.JSONDecodeError:
            return False
        return True

    def _begin_call(self, call: AccumulatedCall) -> bytes:
        block = self._open("call")  # before the ends of others, which are no longer the last
        block.call_id, block.name = call.upstream_id, call.name
        out = self._close_text() + self._close_call() + self.opened(block)
        self._n_told, self._checks, self._call = self._n_told + 1, _CHECKS, (call, block)
        arguments = call.arguments
        return out + self._grow(block, arguments) if arguments else out

    def _open(self, kind: Kind) -> Block:
        block = Block(kind=kind, index=len(self.blocks))
        self.blocks.append(block)
        self._blank = ""
        return block

    def _grow(self, block: Block, text: str, tokens: Sequence[SaidToken] = ()) -> bytes:
        block.parts.append(text)
        block.tokens += tokens
        return self.grown(block, text, tokens)

    def _close(self) -> bytes:
        """The ends of all blocks, and the calls that waited for others."""
        waiting = self._calls.calls[self._n_told :]
        if self.finish_reason != "length" and not all(call.name for call in waiting):
            raise UpstreamProtocol("the upstream sent a tool call without a name")
        out = b"".join([self._begin_call(call) for call in waiting if call.name])
        return out + self._close_call() + self._close_text()

    def _close_text(self) -> bytes:
        block, self._text = self._text, None
        return b"" if block is None else self.closed(block)

    def _close_call(self) -> bytes:
        call, self._call = self._call, None
        return b"" if call is None else self.closed(call[1])

    @abstractmethod
    def begun(self) -> bytes:
        """The events that open the answer."""

    @abstractmethod
    def opened(self, block: Block) -> bytes:
        """The events that begin ``block``, which is still empty."""
        ...

    @abstractmethod
    def grown(self, block: Block, text: str, tokens: Sequence[SaidToken]) -> bytes:
        """The events that add ``text`` to ``block``; ``tokens``: its log-probs, where asked for."""
        ...

    @abstractmethod
    def closed(self, block: Block) -> bytes:
        """The events that end ``block``, which is whole now."""
        ...

    @abstractmethod
    def ended(self) -> bytes:
        """The events that end an answer whose turn is committed."""

    @abstractmethod
    def failed(self, error: Json) -> bytes:
        """The last events of a stream that broke off; ``error`` is OpenAI's error object."""
        ...

    @abstractmethod
    def body(self) -> Json:
        """The answer so far as one object. Raises UpstreamProtocol where there is none."""


def _read_said(data: bytes) -> SaidChunk:
    """A chunk, some of whose fields chat passes on as they are and no door can read."""
    try:
        return decode_said(data)
    except msgspec.ValidationError:
        return decode_said(uniform(data))


def _read_whole(raw: bytes) -> WholeAnswer:
    try:
        return decode_whole(raw)
    except msgspec.ValidationError:
        return decode_whole(uniform(raw))


def chat_id(answer_id: str) -> str:
    """The id under which a turn is stored, for the id that a client of any door has of it."""
    return answer_id.removeprefix(RESPONSE_PREFIX).removeprefix(MESSAGE_PREFIX)


def named_event(payload: Json) -> bytes:
    """An event that is named after the ``type`` of its payload."""
    return b"event: %s\ndata: %s\n\n" % (payload["type"].encode(), to_json(payload))

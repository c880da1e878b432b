"""From chat chunks to the events and the body of the Messages API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from entrogate.errors import UpstreamProtocol
from entrogate.wire.answer import MESSAGE_PREFIX, Block, DoorAnswer, named_event
from entrogate.wire.errors import describe
from entrogate.wire.messages.errors import anthropic_error
from entrogate.wire.said import Json, SaidToken

# Thinking is signed where it was thought by others' models. Ours is not checked when it comes back,
# but some clients send unsigned thinking back as plain text, which would change the prompt.
_SIGNATURE = "entrogate-unsigned"
_STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
}


class MessagesAnswer(DoorAnswer):
    """One message; its id is the chat answer's behind ``msg_``.

    Blocks come one after the other here, and a call's input in one piece, so calls are said at the
    end of the answer: text that comes between their deltas need not wait for them.
    """

    streams_arguments = False

    def begun(self) -> bytes:
        """``message_start``, with a usage of 0, and a first ``ping``."""
        usage = {"input_tokens": 0, "output_tokens": 0}  # counted when the answer ends
        start = {"type": "message_start", "message": self._message([], usage, None, None)}
        return named_event(start) + named_event({"type": "ping"})

    def opened(self, block: Block) -> bytes:
        """``content_block_start``: thinking, text or tool_use."""
        empty: Json
        match block.kind:
            case "reasoning":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
            case "text" | "refusal":
                empty = {"type": "text", "text": ""}
            case "call":
                empty = {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
        return named_event(
            {"type": "content_block_start", "index": block.index, "content_block": empty}
        )

    def grown(self, block: Block, text: str, tokens: Sequence[SaidToken]) -> bytes:  # noqa: ARG002
        """``content_block_delta``; none for a call, whose input is sent when it is whole."""
        match block.kind:
            case "reasoning":
                return _delta(block, {"type": "thinking_delta", "thinking": text})
            case "text" | "refusal":
                return _delta(block, {"type": "text_delta", "text": text})
            case "call":
                return b""  # until it is whole: clients fail on what is no object

    def closed(self, block: Block) -> bytes:
        """What is left of the block (a signature, a call's input), and ``content_block_stop``."""
        stop = named_event({"type": "content_block_stop", "index": block.index})
        if block.kind == "reasoning":
            return _delta(block, {"type": "signature_delta", "signature": _SIGNATURE}) + stop
        if block.kind == "call" and _object(block.text) is not None:
            return _delta(block, {"type": "input_json_delta", "partial_json": block.text}) + stop
        return stop

    def ended(self) -> bytes:
        """``message_delta`` with the stop reason and the usage, and ``message_stop``."""
        if self.broken is not None:
            return self.failed(orjson.loads(describe(UpstreamProtocol(self.broken))[1])["error"])
        stop_reason, stop_sequence = self._stopped()
        delta: Json = {
            "type": "message_delta",
            "delta": {
                "stop_reason": stop_reason,
                "stop_sequence": stop_sequence,
                "stop_details": None,
            },
            "usage": self._usage(),
        }
        if self.entrogate is not None:
            delta["entrogate"] = self.entrogate
        return named_event(delta) + named_event({"type": "message_stop"})

    def failed(self, error: Json) -> bytes:
        """An ``error`` event in Anthropic's envelope."""
        return named_event(anthropic_error(_status(error), orjson.dumps({"error": error}))[1])

    def body(self) -> Json:
        """The message as a whole. Raises UpstreamProtocol where the answer cannot be one."""
        if self.broken is not None:
            raise UpstreamProtocol(self.broken)
        blocks = [_content(block) for block in self.blocks]
        message = self._message(blocks, self._usage(), *self._stopped())
        return message if self.entrogate is None else message | {"entrogate": self.entrogate}

    def _message(
        self,
        content: list[Json],
        usage: Json,
        stop_reason: str | None,
        stop_sequence: str | None,
    ) -> Json:
        return {
            "id": MESSAGE_PREFIX + self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "stop_details": None,
            "usage": usage,
        }

    def _stopped(self) -> tuple[str | None, str | None]:
        """``stop_reason`` and ``stop_sequence``; a forced call ends with ``stop`` in chat."""
        reason = self.finish_reason
        if reason == "stop" and self.calls:
            return "tool_use", None
        if reason == "stop" and any(block.kind == "refusal" for block in self.blocks):
            return "refusal", None
        if reason == "stop" and isinstance(self.stop_reason, str):
            return "stop_sequence", self.stop_reason
        return (None if reason is None else _STOP_REASONS.get(reason, "end_turn")), None

    def _usage(self) -> Json:
        """Anthropic counts the tokens that came out of the cache apart."""
        usage = self.usage
        if usage is None:
            return {"input_tokens": 0, "output_tokens": 0}
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        counted: Json = {
            "input_tokens": usage.prompt_tokens - (cached or 0),
            "output_tokens": usage.completion_tokens or 0,
        }
        if cached is not None:
            counted["cache_read_input_tokens"] = cached
        return counted


def _delta(block: Block, delta: Json) -> bytes:
    return named_event({"type": "content_block_delta", "index": block.index, "delta": delta})


def _content(block: Block) -> Json:
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": _SIGNATURE}
        case "text" | "refusal":
            return {"type": "text", "text": block.text}
        case "call":
            call = {"type": "tool_use", "id": block.call_id, "name": block.name}
            return {**call, "input": _input(block.text)}


def _input(arguments: str) -> Any:
    """The arguments as an object; empty for a call that was cut short, or is no object."""
    written = _object(arguments)
    return {} if written is None else orjson.Fragment(written)


def _object(arguments: str) -> bytes | None:
    """msgspec reads and writes integers of any size, which orjson takes for floats."""
    try:
        said = msgspec.json.decode(arguments)
        return msgspec.json.encode(said) if isinstance(said, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _status(error: Json) -> int:
    """vLLM says the status in ``code``; where there is none it is a fault of the service."""
    code = error.get("code")
    return code if isinstance(code, int) else 500

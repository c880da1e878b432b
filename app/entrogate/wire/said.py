"""What the doors read of a chat answer: more of its fields than the turn itself needs."""

from __future__ import annotations

from typing import Any

import msgspec

from entrogate.wire.chunks import Message, Usage

Json = dict[str, Any]
_NOTHING = msgspec.Raw(b"null")


class CachedTokens(msgspec.Struct, gc=False):
    """How many tokens of the prompt came from the prefix cache."""

    cached_tokens: int | None = None


class ReasoningTokens(msgspec.Struct, gc=False):
    """How many of the sampled tokens were reasoning."""

    reasoning_tokens: int | None = None


class SaidUsage(Usage, gc=False):
    """The usage with its details, as doors report it."""

    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class SaidToken(msgspec.Struct):
    """One token with its log-prob, as chat says it; ``bytes`` is null where it has no text."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[Json] | None = None

    @property
    def raw(self) -> bytes:
        """The bytes of its text."""
        if self.bytes is not None:
            return bytes(b & 0xFF for b in self.bytes)
        return self.token.encode(errors="replace")


class SaidLogprobs(msgspec.Struct):
    """Log-probs as a client is told them: one entry a token, with its text."""

    content: list[SaidToken] | None = None


class SaidChoice(msgspec.Struct):
    """A choice of a chunk; ``logprobs`` is decoded only for a client that asked for them."""

    delta: Message
    index: int = 0
    logprobs: msgspec.Raw = _NOTHING
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class SaidChunk(msgspec.Struct):
    """One event of a chat stream; ``error`` is an object at vLLM, a text at others."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[SaidChoice] = []
    usage: SaidUsage | None = None
    error: Any = None
    kv_transfer_params: Json | None = None
    entrogate: Json | None = None  # of an answer with `x-entrogate-debug`


class WholeChoice(msgspec.Struct):
    """One choice of a whole chat answer."""

    message: Message
    logprobs: msgspec.Raw = _NOTHING
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class WholeAnswer(msgspec.Struct):
    """A chat completion that was not streamed."""

    choices: list[WholeChoice]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: SaidUsage | None = None
    kv_transfer_params: Json | None = None
    entrogate: Json | None = None


decode_said = msgspec.json.Decoder(SaidChunk).decode
decode_whole = msgspec.json.Decoder(WholeAnswer).decode
_decode_logprobs = msgspec.json.Decoder(SaidLogprobs | None).decode


def tokens_of(logprobs: msgspec.Raw) -> list[SaidToken]:
    """The tokens of a choice in order. Raises msgspec.DecodeError for another shape."""
    said = _decode_logprobs(logprobs)
    return (said.content if said is not None else None) or []

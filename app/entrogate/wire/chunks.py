"""What we read of vLLM's answers: only the fields we need, decoded by msgspec.

Unknown fields are skipped without being built. Sources: vLLM 0.32
``entrypoints/openai/chat_completion/protocol.py`` and ``completion/protocol.py``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
Logprob = Annotated[float, msgspec.Meta(le=1.0)]  # 0 and a margin for what rounding can do


class TopLogprob(msgspec.Struct, gc=False):
    """One alternative; its text is not read (see `wire.alternatives`)."""

    logprob: Logprob


class TokenLogprob(msgspec.Struct):
    """The log-prob (nats) of a sampled token and of its likeliest alternatives."""

    logprob: Logprob = -9999.0
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct):
    """Log-probs of a chunk or body: one entry a token."""

    content: list[TokenLogprob] | None = None


class FunctionPart(msgspec.Struct, gc=False):
    """A piece of a call's function, or the whole; either field may be missing in a piece."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPart(msgspec.Struct):
    """A whole tool call of a body, or a piece of one in a stream.

    ``index`` is -1 where it has none.
    """

    index: Index = -1
    id: str | None = None
    function: FunctionPart | None = None
    name: object = None  # where some servers write it, and the next
    arguments: object = None


class Message(msgspec.Struct):
    """An assistant message, or the delta of one."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    refusal: str | None = None

    @property
    def thought(self) -> str | None:
        """The reasoning text under either of the names vLLM has used."""
        return self.reasoning or self.reasoning_content or self.reasoning

    @property
    def empty(self) -> bool:
        """Whether a client would see nothing in it."""
        return not (
            self.role is not None
            or self.content is not None
            or self.thought is not None
            or self.tool_calls
            or self.refusal
        )


def is_foreign(message: Message, finish_reason: str | None) -> bool:
    """Is a choice one that can be read, and yet not what it says? See `wire.dialects`.

    An empty finish reason ends nothing; a call may be written without its function around it.
    """
    return finish_reason == "" or any(
        call.function is None and not (call.name is None and call.arguments is None)
        for call in message.tool_calls or ()
    )


class Usage(msgspec.Struct, gc=False):
    """Counts of tokens; the other fields of the usage pass by as bytes."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None


class ChunkChoice(msgspec.Struct):
    """One choice in an event of a chat stream."""

    index: Index
    delta: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[TokenId] | None = None


class Chunk(msgspec.Struct):
    """One event of a streamed chat completion."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    prompt_token_ids: list[TokenId] | None = None
    error: object = None


class BodyChoice(msgspec.Struct):
    """One choice of a whole chat answer."""

    index: Index
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[TokenId] | None = None


class Body(msgspec.Struct):
    """A chat completion that was not streamed."""

    choices: list[BodyChoice]
    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None
    prompt_token_ids: list[TokenId] | None = None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists over the tokens; ``top_logprobs`` maps a token's text to its log-prob."""

    token_logprobs: list[Logprob | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, Logprob] | None] = []


class CompletionChoice(msgspec.Struct):
    """One choice of ``/v1/completions``, in an event or whole: a resumed answer."""

    text: str
    index: Index = 0
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[TokenId] | None = None

    def __post_init__(self) -> None:
        """An empty finish reason ends nothing, though some servers say it in each event."""
        self.finish_reason = self.finish_reason or None


class Completion(msgspec.Struct):
    """A text completion, or one event of a streamed one."""

    choices: list[CompletionChoice] = []
    usage: Usage | None = None
    error: object = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
decode_body = msgspec.json.Decoder(Body).decode
decode_completion = msgspec.json.Decoder(Completion).decode

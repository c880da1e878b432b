"""What one choice of an answer has said so far: its tokens, its text, the calls it proposes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrogate.engine.frames import Gated
from entrogate.entropy.capture import CaptureBuilder
from entrogate.serve.linkage import mint
from entrogate.types import Capture, Estimator
from entrogate.upstream.captures import ChoiceCapture
from entrogate.upstream.handshake import Capabilities
from entrogate.wire.alternatives import marks_of, probabilities
from entrogate.wire.chunks import (
    BodyChoice,
    ChatLogprobs,
    CompletionChoice,
    Message,
    TokenLogprob,
    ToolCallPart,
)

_NAN = math.nan
_UNKNOWN = TokenLogprob(logprob=_NAN)


@dataclass(slots=True, kw_only=True)
class ProposedCall:
    """A tool call that the model wrote, whole or so far, under the id that we minted for it."""

    index: int
    upstream_id: str
    call_id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])

    @property
    def arguments_text(self) -> str:
        return "".join(self.arguments)


class Choice:
    """Accumulates one choice; without ``call_text`` nobody looks for the tool-call token.

    ``gap`` says why its capture is incomplete, None if it is not.
    """

    def __init__(self, index: int, capabilities: Capabilities, call_text: str | None) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.builder = CaptureBuilder(capabilities.top_logprobs, capabilities.vocab_size)
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ProposedCall] = []
        self.finish_reason: str | None = None
        self.gap: str | None = None if capabilities.capture else "capture_unavailable"
        self.altered: list[tuple[int, int]] = []
        self.wasted_tokens = 0
        self.held: list[bytes] = []
        self.resumes_at: int | None = None  # set when a call was suppressed
        self.exact: NDArray[np.void] | None = None  # of dtype `frames.TOKEN`: the engine's capture
        self.gated: Gated | None = None  # what the gate in the engine did
        self._pending: list[TokenLogprob] = []  # parallel to the last token ids
        self._p_call: list[float] = []
        self._call_token_id = capabilities.tool_call_token_id
        self._engine = capabilities.engine
        names = () if call_text is None else (call_text, f"token_id:{self._call_token_id}")
        self._call_marks = marks_of(names)

    def add_tokens(
        self, token_ids: list[int] | None, logprobs: ChatLogprobs | None, answer: bytes
    ) -> None:
        """Take the tokens of one chunk, or of a whole answer; ``answer`` is its JSON.

        On the path of every streamed token: what can wait is done in `capture`.
        """
        entries = (logprobs.content if logprobs is not None else None) or []
        if token_ids is None or len(token_ids) != len(entries):
            self._note_gap(token_ids, len(entries))
            entries = [_UNKNOWN] * len(token_ids or ())
        if not entries:
            return
        self.token_ids.extend(token_ids or ())
        self._pending.extend(entries)
        self._p_call += probabilities(answer, self._call_marks, len(entries))

    def capture(self) -> Capture:
        """What the engine said of the tokens so far."""
        if self.exact is not None:
            return exact_capture(self.exact)
        self._settle()
        return self.builder.build()

    def take_captured(self, captured: ChoiceCapture, n_counted: int | None) -> None:
        """Take what the engine captured of this choice, or of its end after a suppressed call.

        ``n_counted`` is the server's own count where it is known; what the engine sampled beyond it
        (before a stop string was noticed) is left out.
        """
        tokens = captured.tokens()[:n_counted]
        if not captured.complete or (n_counted is not None and len(tokens) != n_counted):
            self.gap = self.gap or "capture_incomplete"
        start = 0 if self.exact is None else len(self.exact)
        if self.resumes_at is not None:
            self.altered.append((start, start + 1))
        for gated in captured.gated:
            self.altered.append((start + gated.position, start + gated.position + 1))
            self.gated = self.gated or gated
        self.exact = tokens if self.exact is None else np.concatenate((self.exact, tokens))
        self.token_ids = self.exact["token_id"].tolist()

    def add_message(self, message: Message) -> None:
        """Take the text and the calls of a delta or of a whole message."""
        if message.content is not None:
            self.content.append(message.content)
        thought = message.thought
        if thought is not None:
            self.reasoning.append(thought)
        for part in message.tool_calls or ():
            self._add_call(part)

    def add_body(self, choice: BodyChoice, answer: bytes) -> None:
        """Take a choice of an answer that was not streamed."""
        if not self._engine:
            self.add_tokens(choice.token_ids, choice.logprobs, answer)
        for position, part in enumerate(choice.message.tool_calls or ()):
            part.index = position
        self.add_message(choice.message)
        self.finish_reason = choice.finish_reason

    def add_completion(self, choice: CompletionChoice) -> None:
        """Take tokens that were decoded after the tool call was masked."""
        self.content.append(choice.text)
        self.finish_reason = choice.finish_reason or self.finish_reason
        if self.exact is not None:
            return  # the tokens come from the engine
        self._settle()
        logprobs, token_ids = choice.logprobs, choice.token_ids or []
        if logprobs is None or len(logprobs.token_logprobs) != len(token_ids):
            self._note_gap(token_ids, 0 if logprobs is None else len(logprobs.token_logprobs))
            for token_id in token_ids:
                self.builder.add(token_id, _NAN, (), _NAN)
        else:
            for token_id, logprob, top in zip(
                token_ids, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
            ):
                self.builder.add(
                    token_id,
                    _NAN if logprob is None else logprob,
                    list((top or {}).values()),
                    math.exp(min(p, 0.0))
                    if (p := (top or {}).get(f"token_id:{self._call_token_id}")) is not None
                    else _NAN,
                )
        if token_ids and self.resumes_at is not None and not self.altered:
            self.altered.append((len(self.token_ids), len(self.token_ids) + 1))
        self.token_ids.extend(token_ids)

    def call_position(self) -> int | None:
        """Position of the token that opens the first call; None when it is not there."""
        if self._call_token_id is None:
            return None
        try:
            return self.token_ids.index(self._call_token_id)
        except ValueError:
            return None

    def cut_at_call(self) -> bool:
        """Drop the call and everything after it; False when its first token was not found."""
        position = self.call_position()
        if position is None:
            return False
        self.wasted_tokens += len(self.token_ids) - position
        if self.exact is not None:
            self.exact = self.exact[:position]
        else:
            self._settle()
            self.builder.truncate(position)
        del self.token_ids[position:]
        self.resumes_at = position
        self.finish_reason = None
        self.held.clear()
        return True

    def message(self, *, calls: bool) -> dict[str, Any]:
        """The assistant message as the client has it."""
        content = "".join(self.content) if self.content else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if calls and self.calls:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_text},
                }
                for call in self.calls
            ]
        return message

    def _settle(self) -> None:
        """Hand the tokens that have gathered to the builder."""
        pending = self._pending
        if not pending:
            return
        self.builder.add_many(
            self.token_ids[-len(pending) :],
            [entry.logprob for entry in pending],
            [top.logprob for entry in pending for top in entry.top_logprobs],
            [len(entry.top_logprobs) for entry in pending],
            self._p_call,
        )
        self._pending, self._p_call = [], []

    def _add_call(self, part: ToolCallPart) -> None:
        call = next((c for c in self.calls if c.index == part.index), None)
        if call is None:
            call = ProposedCall(index=part.index, upstream_id=part.id or "", call_id=mint("call"))
            self.calls.append(call)
        if part.function is not None:
            call.name += part.function.name or ""
            if part.function.arguments:
                call.arguments.append(part.function.arguments)

    def _note_gap(self, token_ids: list[int] | None, n_logprobs: int) -> None:
        if token_ids is None:
            self.gap = self.gap or ("token_ids_missing" if n_logprobs else None)
        elif n_logprobs == 0 and token_ids:
            self.gap = self.gap or "logprobs_missing"
        elif n_logprobs != len(token_ids):
            self.gap = self.gap or "count_mismatch"


def exact_capture(tokens: NDArray[np.void]) -> Capture:
    """The engine's tokens (dtype `frames.TOKEN`) as a capture: bounds that meet."""
    entropy = tokens["entropy"]
    return Capture(
        token_ids=tokens["token_id"],
        logprobs=tokens["logprob"],
        entropy_lower=entropy,
        entropy_upper=entropy,
        margin=tokens["margin"],
        tail_mass=np.zeros(len(tokens), dtype=np.float32),
        p_tool_call=tokens["p_tool_call"],
        estimator=Estimator.EXACT,
        top_k=None,
    )

"""What one choice of an answer has said so far: its text, its tokens, the calls it proposes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from entrogate.turn.ids import mint_call
from entrogate.turn.tokens import ChoiceTokens
from entrogate.upstream.capabilities import Capabilities
from entrogate.wire.calls import CallAccumulator
from entrogate.wire.chunks import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedCall:
    """A tool call that the model wrote, whole or so far, under the id that we minted for it."""

    index: int
    call_id: str
    name: str
    arguments: str = ""


class Choice:
    """Accumulates one choice; ``call_text`` is what opens a call, None where no tool is offered.

    ``now``: seconds since the epoch, for the ids of its calls.
    """

    def __init__(
        self,
        index: int,
        capabilities: Capabilities,
        call_text: str | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.index = index
        self.tokens = ChoiceTokens(capabilities, call_text)
        self.calls = CallAccumulator()
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.finish_reason: str | None = None
        self._now = now
        self._call_ids: dict[int, str] = {}

    def add(self, message: Message, *, whole: bool = False) -> None:
        """Take the text and the calls of a delta, or of a ``whole`` message.

        Raises UpstreamProtocol when its calls have no end.
        """
        if message.content is not None:
            self.content.append(message.content)
        thought = message.thought
        if thought is not None:
            self.reasoning.append(thought)
        if message.refusal is not None:
            self.refusal.append(message.refusal)
        if message.tool_calls:
            feed = self.calls.feed_whole if whole else self.calls.feed
            feed(message.tool_calls)

    def say_again(self, earlier: Choice) -> None:
        """Begin with the text of ``earlier``: the client has it, whatever is asked again."""
        self.content, self.reasoning = list(earlier.content), list(earlier.reasoning)

    def call_id(self, index: int) -> str:
        """The id that we mint for the call at ``index``; the same each time."""
        found = self._call_ids.get(index)
        if found is None:
            found = self._call_ids[index] = mint_call(self._now())
        return found

    def proposed(self) -> list[ProposedCall]:
        """The calls so far, in order of their index."""
        return [
            ProposedCall(
                index=call.index,
                call_id=self.call_id(call.index),
                name=call.name,
                arguments=call.arguments,
            )
            for call in self.calls.calls
        ]

    def message(self, *, calls: bool) -> dict[str, Any]:
        """The assistant message as the client has it."""
        content = "".join(self.content) if self.content else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if self.refusal:
            message["refusal"] = "".join(self.refusal)
        proposed = self.proposed() if calls else []
        if proposed:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in proposed
            ]
        return message

"""An agent: a loop over the chat completions of any OpenAI-compatible server, and tools it runs.

It sends back the reasoning of its earlier turns, so that each prompt begins with the prompt and the
sample of the turn before.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from openai import AsyncOpenAI, omit

from entrogate_lab.almanac.tasks import MAX_TURNS
from entrogate_lab.almanac.tools import call_key, execute, tool_schema
from entrogate_lab.almanac.world import Source

MAX_TOKENS = 192
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """A call that the agent made, and what came back."""

    name: str
    arguments: dict[str, Any]
    result: str

    @property
    def key(self) -> str:
        """What is equal for equal calls, however their arguments are written."""
        return call_key(self.name, self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One turn of the model. `wasted_tokens` and `decision` are what Entrogate says of it, if it is
    Entrogate that answers."""

    reasoning: str
    content: str
    finish_reason: str
    completion_tokens: int
    latency_seconds: float
    wasted_tokens: int
    decision: str | None
    trajectory_id: str | None
    asked: tuple[tuple[str, str, str], ...]
    """Tool calls as (id, name, arguments)."""


@dataclass(slots=True)
class Run:
    """What happened to one question."""

    responses: list[Response] = field(default_factory=list[Response])
    calls: list[Executed] = field(default_factory=list[Executed])
    answer: str | None = None

    @property
    def trajectory_id(self) -> str | None:
        """The gateway's id of the run; None without an answer, or from a bare vLLM."""
        return self.responses[0].trajectory_id if self.responses else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The agent's fixed parts. `headers` and the fields of `body` go with every request."""

    client: AsyncOpenAI
    model: str
    source: Source
    temperature: float = TEMPERATURE
    max_turns: int = MAX_TURNS
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: dict[str, Any] = field(default_factory=dict[str, Any])

    async def run(
        self,
        question: str,
        *,
        tools: Sequence[str],
        seed: str,
        headers: dict[str, str] | None = None,
        on_turn: Callable[[Response, list[Executed]], None] | None = None,
    ) -> Run:
        """Work on `question` until there is an answer or the turns run out."""
        run = Run()
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        for turn in range(self.max_turns):
            response = await self._respond(messages, tools, request_seed(seed, turn), headers or {})
            run.responses.append(response)
            made: list[Executed] = []
            if response.asked and turn + 1 < self.max_turns:
                made = [_execute(self.source, name, text) for _, name, text in response.asked]
                run.calls += made
                messages += _exchange(response, made)
            if on_turn is not None:
                on_turn(response, made)
            if not response.asked:
                run.answer = response.content.strip() or None
                break
        return run

    async def _respond(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[str],
        seed: int,
        headers: dict[str, str],
    ) -> Response:
        schemas = cast(Any, [tool_schema(name) for name in tools])
        begun = time.monotonic()
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=cast(Any, messages),
            temperature=self.temperature,
            max_tokens=MAX_TOKENS,
            seed=seed,
            tools=schemas if tools else omit,
            tool_choice="auto" if tools else omit,
            stream=False,
            extra_headers={**self.headers, **headers},
            extra_body=self.body,
        )
        latency_seconds = time.monotonic() - begun
        completion = raw.parse()
        choice = completion.choices[0]
        said = choice.message.model_extra or {}
        told = cast(dict[str, Any], (completion.model_extra or {}).get("entrogate") or {})
        asked = [
            (call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or []
            if call.type == "function"
        ]
        return Response(
            reasoning=str(said.get("reasoning") or said.get("reasoning_content") or ""),
            content=choice.message.content or "",
            finish_reason=choice.finish_reason,
            completion_tokens=completion.usage.completion_tokens if completion.usage else 0,
            latency_seconds=latency_seconds,
            wasted_tokens=int(told.get("wasted_tokens") or 0),
            decision=raw.headers.get("x-entrogate-decision"),
            trajectory_id=raw.headers.get("x-entrogate-trajectory-id"),
            asked=tuple(asked),
        )


def request_seed(seed: str, turn: int) -> int:
    """The sampling seed of one turn: the same in every mode."""
    return int.from_bytes(hashlib.sha256(f"{seed}-{turn}".encode()).digest()[:4]) >> 1


def _execute(source: Source, name: str, text: str) -> Executed:
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        return Executed(name=name, arguments={"text": text}, result="arguments are not an object")
    known = cast(dict[str, Any], arguments)
    return Executed(name=name, arguments=known, result=execute(source, name, known))


def _exchange(response: Response, made: Sequence[Executed]) -> list[dict[str, Any]]:
    """The messages that a turn with calls adds to the conversation."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
        for call_id, name, text in response.asked
    ]
    spoken: dict[str, Any] = {
        "role": "assistant",
        "content": response.content,
        "reasoning": response.reasoning,
        "tool_calls": calls,
    }
    results = [
        {"role": "tool", "tool_call_id": asked[0], "content": executed.result}
        for asked, executed in zip(response.asked, made, strict=True)
    ]
    return [spoken, *results]

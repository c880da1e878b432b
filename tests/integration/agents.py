"""A scripted agent that talks through any of the three doors, tool call by tool call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.integration.doors import (
    MESSAGES,
    RESPONSES,
    ask_messages,
    ask_responses,
    folded_message,
    folded_response,
    streamed,
)
from tests.integration.harness import (
    CHAT,
    Running,
    ask,
    message_of,
    message_of_stream,
)

Json = dict[str, Any]
DOORS = ("chat", "messages", "responses")
FAILED = "(failed) "  # a result that begins so is marked as an error where the door can


@dataclass(slots=True)
class Agent:
    """Answers every call by ``tool(name, entity)`` until the model says something else.

    ``remember`` changes a call's id in all that is sent back. ``calls`` are those that it got,
    ``decided`` those that the gateway recorded, as (entity, applied, reason).
    """

    gateway: Running
    door: str
    tool: Callable[[str, str], str]
    stream: bool = False
    stored: bool = False  # Responses: each request names the one before and sends what is new
    remember: Callable[[str], str] = lambda call_id: call_id
    calls: list[str] = field(default_factory=list[str])
    decided: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    body: Json = field(default_factory=dict[str, Any])
    trajectory: Json = field(default_factory=dict[str, Any])

    async def run(self, *steps: Json, most: int = 30) -> str:
        """The model's last words."""
        begin = {"chat": ask, "messages": ask_messages, "responses": ask_responses}[self.door]
        self.body = begin(*steps)
        for _ in range(most):
            headers, text, calls = await self._ask()
            if not calls:
                break
            self._go_on([(call_id, self.tool(name, entity)) for call_id, name, entity in calls])
            self.calls += [entity for _, _, entity in calls]
        else:
            raise AssertionError("the agent never stopped")
        found = await self.gateway.client.get(
            f"/v1/trajectories/{headers['x-entrogate-trajectory-id']}"
        )
        self.trajectory = found.json()
        self.decided = [
            (
                json.loads(call["arguments"] or '{"entity":""}')["entity"],
                call["decision"]["applied"],
                call["decision"]["reason"],
            )
            for turn in self.trajectory["turns"]
            for call in turn["calls"]
        ]
        return text.strip()

    @property
    def reasons(self) -> list[str]:
        """Why each call was decided as it was."""
        return [reason for _, _, reason in self.decided]

    async def _ask(self) -> tuple[Any, str, list[tuple[str, str, str]]]:
        """Headers of the answer, its text and its calls: id, name and entity."""
        if self.door == "chat":
            return await self._ask_chat()
        route = MESSAGES if self.door == "messages" else RESPONSES
        if self.stream:
            response, events = await streamed(self.gateway, route, self.body)
            answer = (folded_message if self.door == "messages" else folded_response)(events)
        else:
            response = await self.gateway.client.post(route, json=self.body)
            assert response.status_code == 200, response.text
            answer = response.json()
        if self.door == "messages":
            return response.headers, *self._take_message(answer)
        return response.headers, *self._take_response(answer)

    async def _ask_chat(self) -> tuple[Any, str, list[tuple[str, str, str]]]:
        if self.stream:
            response, raw = await self.gateway.stream(self.body)
            message = message_of_stream(raw)
        else:
            response = await self.gateway.client.post(CHAT, json=self.body)
            message = message_of(response)
        for call in message.get("tool_calls", ()):
            call["id"] = self.remember(call["id"])
        self._add("messages", message)
        calls = [
            (c["id"], c["function"]["name"], _entity(json.loads(c["function"]["arguments"])))
            for c in message.get("tool_calls", ())
        ]
        return response.headers, message.get("content") or "", calls

    def _take_message(self, message: Json) -> tuple[str, list[tuple[str, str, str]]]:
        uses = [block for block in message["content"] if block["type"] == "tool_use"]
        for use in uses:
            use["id"] = self.remember(use["id"])
        self._add("messages", {"role": "assistant", "content": message["content"]})
        text = "".join(b["text"] for b in message["content"] if b["type"] == "text")
        return text, [(use["id"], use["name"], _entity(use["input"])) for use in uses]

    def _take_response(self, answer: Json) -> tuple[str, list[tuple[str, str, str]]]:
        if self.stored:
            self.body |= {"input": [], "previous_response_id": answer["id"]}
        elif isinstance(self.body["input"], str):
            self.body["input"] = [{"role": "user", "content": self.body["input"]}]
        items = [item for item in answer["output"] if item["type"] == "function_call"]
        for item in items:
            item["call_id"] = self.remember(item["call_id"])
        if not self.stored:
            self._add("input", *answer["output"])
        texts = [item for item in answer["output"] if item["type"] == "message"]
        text = "".join(part.get("text", "") for item in texts for part in item["content"])
        return text, [(i["call_id"], i["name"], _entity(json.loads(i["arguments"]))) for i in items]

    def _add(self, where: str, *items: Json) -> None:
        self.body = {**self.body, where: [*self.body[where], *items]}

    def _go_on(self, results: list[tuple[str, str]]) -> None:
        """Send ``results`` with the next request, each with the id of its call."""
        if self.door == "chat":
            for call_id, said in results:
                self._add("messages", {"role": "tool", "tool_call_id": call_id, "content": said})
        elif self.door == "messages":
            blocks = [
                {
                    "type": "tool_result",
                    "tool_use_id": call_id,
                    "content": said.removeprefix(FAILED),
                    "is_error": said.startswith(FAILED),
                }
                for call_id, said in results
            ]
            self._add("messages", {"role": "user", "content": blocks})
        else:
            for call_id, said in results:
                item = {"type": "function_call_output", "call_id": call_id, "output": said}
                self._add("input", item)


def _entity(arguments: Json) -> str:
    return str(arguments.get("entity", ""))

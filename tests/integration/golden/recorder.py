"""Runs the cases of a group over real sockets and writes down what each side saw."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from entrogate_lab.bench.script import script
from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.golden.cases import GATEWAYS, GROUPS, Case
from tests.integration.golden.normal import Normal
from tests.integration.golden.shapes import ShapedUpstream
from tests.integration.harness import CHAT, Running, ask, policy_file, running, settings

COMPLETIONS = "/v1/completions"
ROUTES = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES, "completions": COMPLETIONS}
_HERE = Path(__file__).parent
_OF_THE_SERVER = {"date", "server", "content-length", "transfer-encoding"}
_OF_THE_CLIENT = {"host", "content-length", "user-agent", "accept-encoding", "connection"}
_NOT_SHOWN = {"messages", "tools", "input"}  # of the client's body: every case has the same


class Draws(random.Random):
    """A fair coin that always falls the same way: below every epsilon."""

    def random(self) -> float:
        return 0.05


def file_of(group: str) -> Path:
    """Where the recording of a group is kept."""
    return _HERE / f"{group}.txt"


def difference(group: str, now: str) -> str:
    """What is not as it was recorded; empty when nothing is."""
    before = file_of(group).read_text(encoding="utf-8").splitlines()
    return "\n".join(difflib.unified_diff(before, now.splitlines(), "recorded", "now", n=4))


async def recording(group: str, folder: Path) -> str:
    """The text of a group: each of its cases, whole and streamed."""
    parts: list[str] = []
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ShapedUpstream())
        gateways: dict[str, Running] = {}
        for case in GROUPS[group]:
            if case.gateway not in gateways:
                own = folder / case.gateway
                own.mkdir()
                begun = _gateway(upstream, own, case.gateway)
                gateways[case.gateway] = await stack.enter_async_context(begun)
            for stream in case.streamed:
                session = _Session(upstream, gateways[case.gateway], case, stream)
                parts.append(await session.text())
    return "\n".join(parts) + "\n"


@asynccontextmanager
async def _gateway(upstream: ShapedUpstream, folder: Path, kind: str) -> AsyncIterator[Running]:
    policy = GATEWAYS[kind]
    branches: dict[str, Any] = {"policy": "observe" if policy is None else ""}
    if policy is not None:
        branches["policy"] = policy_file(folder, **policy)
    async with running(settings(upstream.url, folder, **branches)) as gateway:
        gateway.gateway.random = Draws()
        await gateway.chat(ask({"content": "Warm."}))  # the handshake is not part of any case
        yield gateway


class _Session:
    """One case, streamed or whole: its requests one after the other, and what became of them."""

    def __init__(
        self, upstream: ShapedUpstream, gateway: Running, case: Case, stream: bool
    ) -> None:
        self._upstream, self._gateway = upstream, gateway
        self._case, self._stream = case, stream
        prompt = f"Who? {script(*case.steps)}" if case.shape is None else f"shape:{case.shape}"
        self._normal = Normal(upstream._vocabulary, prompt)  # pyright: ignore[reportPrivateUsage]
        self._prompt = prompt
        self._lines: list[str] = []

    async def text(self) -> str:
        case = self._case
        self._upstream.refuse_completions = case.refuses_to_resume
        self._lines = [f"===== {case.door} {case.name}: {'streamed' if self._stream else 'whole'}"]
        body = self._first()
        answer = await self._ask(body, stream=self._stream and not case.results)
        for result in case.results:
            body = self._follow_up(body, answer, result)
            answer = await self._ask(body, stream=self._stream)
        if case.stored and (trajectory := answer.headers.get("x-entrogate-trajectory-id")):
            await self._store(trajectory)
        return "\n".join(self._lines)

    def _first(self) -> dict[str, Any]:
        case = self._case
        match case.door:
            case "chat":
                body = ask(tools=case.tools)
                body["messages"] = [{"role": "user", "content": self._prompt}]
            case "messages":
                body = ask_messages(tools=case.tools)
                body["messages"] = [{"role": "user", "content": self._prompt}]
            case "responses":
                body = {**ask_responses(tools=case.tools), "input": self._prompt}
            case _:
                body = {"model": "scripted", "prompt": self._prompt}
        return {**body, **case.fields}

    async def _ask(self, body: dict[str, Any], *, stream: bool) -> httpx.Response:
        self._upstream.seen.clear()
        body = {**body, "stream": True} if stream else body
        route = ROUTES[self._case.door]
        shown = {k: v for k, v in body.items() if k not in _NOT_SHOWN}
        self._lines.append(f"----- client: POST {route} {self._normal.value(shown)}")
        async with self._gateway.client.stream(
            "POST", route, json=body, headers=self._case.headers
        ) as answer:
            broken = ""
            received = bytearray()
            try:
                async for part in answer.aiter_raw():
                    received += part
            except httpx.HTTPError as error:
                broken = f"(the connection broke: {type(error).__name__})"
        answer._content = bytes(received)  # pyright: ignore[reportPrivateUsage]
        for path, headers, raw in self._upstream.seen:
            self._lines.append(f"----- upstream: POST {path} {self._sent(body, raw)}")
            if self._case.headers:
                own = sorted((k.lower(), v) for k, v in headers.items())
                kept = {k: v for k, v in own if k not in _OF_THE_CLIENT}
                self._lines.append(f"headers {self._normal.value(kept)}")
        self._lines.append(f"----- answer: {answer.status_code} {self._headers(answer)}{broken}")
        streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
        shape = self._normal.stream if streamed else self._normal.body
        self._lines.append(shape(answer.content))
        return answer

    def _sent(self, asked: dict[str, Any], raw: bytes) -> str:
        """A body for the upstream: what of it is not just as the client of chat sent it."""
        body: dict[str, Any] = json.loads(raw)
        if self._case.door == "chat" and "messages" in body:
            added = {k: v for k, v in body.items() if k not in asked or asked[k] != v}
            missing = [k for k in asked if k not in body]
            body = added | ({"(left out)": missing} if missing else {})
        return self._normal.value(body)

    def _headers(self, answer: httpx.Response) -> str:
        shown = {k: v for k, v in sorted(answer.headers.items()) if k not in _OF_THE_SERVER}
        return self._normal.value(shown)

    def _follow_up(self, body: dict[str, Any], answer: httpx.Response, result: str) -> Any:
        """The next request of an agent whose tools said ``result``."""
        said = json.loads(answer.content)
        if self._case.door == "chat":
            message = {k: v for k, v in said["choices"][0]["message"].items() if v is not None}
            calls = [call["id"] for call in message["tool_calls"]]
            results = [{"role": "tool", "tool_call_id": i, "content": result} for i in calls]
            return {**body, "messages": [*body["messages"], message, *results]}
        if self._case.door == "messages":
            calls = [part["id"] for part in said["content"] if part["type"] == "tool_use"]
            results = [{"type": "tool_result", "tool_use_id": i, "content": result} for i in calls]
            turn = {"role": "assistant", "content": said["content"]}
            messages = [*body["messages"], turn, {"role": "user", "content": results}]
            return {**body, "messages": messages}
        calls = [item["call_id"] for item in said["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": i, "output": result} for i in calls]
        return {**body, "previous_response_id": said["id"], "input": results}

    async def _store(self, trajectory_id: str) -> None:
        found = await self._gateway.client.get(
            f"/v1/trajectories/{trajectory_id}", params={"tokens": "true"}
        )
        kept: dict[str, Any] = found.json()
        kept.pop("toolsets", None)
        kept.pop("sequence", None)  # counts the commits of the whole store
        for turn in kept.get("turns", ()):
            # The entropies of each token follow from the log-probs; the segments tell of them.
            turn["tokens"] = {
                k: v for k, v in (turn.get("tokens") or {}).items() if k.endswith("token_ids")
            }
        self._lines.append(f"----- stored: {found.status_code} {self._normal.value(_told(kept))}")


def _told(value: Any) -> Any:
    """The record without the fields that say nothing."""
    if isinstance(value, dict):
        return {k: _told(v) for k, v in value.items() if v not in (None, [], {}, "")}
    return [_told(v) for v in value] if isinstance(value, list) else value

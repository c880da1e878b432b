"""Agents that converse through gateways without a pause, and what each request came to."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

from entrogate_lab.almanac.tasks import MAX_TURNS, held_out_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS, execute, tool_schema
from entrogate_lab.almanac.world import make_world
from tests.integration.harness import CHAT, message_of_stream

MODEL = "almanac"
_RETRY_SECONDS = 0.2


class Outcome(StrEnum):
    ANSWERED = "answered"  # to the last byte: the turn is acknowledged
    BROKEN = "broken"  # it had begun
    REFUSED = "refused"  # an error, or no connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of an agent; times are of the monotonic clock."""

    client: int
    sent_at: float
    ended_at: float
    outcome: Outcome
    status: int | None  # None: no connection
    response_id: str | None = None


@dataclass
class Load:
    """``clients`` agents on Almanac tasks; a request that fails is sent again, to the next URL."""

    urls: Sequence[str]
    clients: int
    requests: list[Request] = field(default_factory=list[Request])
    sent: dict[int, float] = field(default_factory=dict[int, float])  # by client: in flight since
    errors: list[str] = field(default_factory=list[str])
    stray: int = 0  # conversations whose turns are in more than one trajectory

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Leaving lets every client finish the conversation it is in."""
        self._stop = asyncio.Event()
        self._world = make_world(0)
        self._tasks = itertools.count()
        async with httpx.AsyncClient(timeout=60) as http, asyncio.TaskGroup() as agents:
            for client in range(self.clients):
                agents.create_task(self._client(client, http))
            try:
                yield self
            finally:
                self._stop.set()

    def since(self, moment: float) -> list[Request]:
        """Requests that ended at ``moment`` or later."""
        return [each for each in self.requests if each.ended_at >= moment]

    async def until_answered(self, moment: float, timeout_seconds: float = 180.0) -> float:
        """Seconds from ``moment`` until every client had an answer to a later request."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                first: dict[int, float] = {}
                for each in self.requests:
                    if each.outcome is Outcome.ANSWERED and each.sent_at >= moment:
                        first.setdefault(each.client, each.ended_at)
                if len(first) == self.clients:
                    return max(first.values()) - moment
                await asyncio.sleep(0.02)

    async def _client(self, client: int, http: httpx.AsyncClient) -> None:
        while not self._stop.is_set():
            task = held_out_task(self._world, 11, next(self._tasks))
            body: dict[str, Any] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": task.question}],
                "tools": [tool_schema(name) for name in DOMAIN_TOOLS[task.domain]],
                "max_tokens": 96,
                "stream": True,
            }
            trajectories: set[str] = set()
            for _ in range(MAX_TURNS):
                message = await self._insist(client, http, body, trajectories)
                calls = (message or {}).get("tool_calls")
                if message is None or not calls:
                    break
                results = [
                    {"role": "tool", "tool_call_id": call["id"], "content": self._result(call)}
                    for call in calls
                ]
                body = {**body, "messages": [*body["messages"], message, *results]}
            self.stray += len(trajectories) > 1

    async def _insist(
        self, client: int, http: httpx.AsyncClient, body: dict[str, Any], trajectories: set[str]
    ) -> dict[str, Any] | None:
        """The answer, however often it takes; None at the end of the run."""
        at = client
        while True:
            url = self.urls[at % len(self.urls)]
            message = await self._ask(client, http, url, body, trajectories)
            if message is not None or self._stop.is_set():
                return message
            at += 1
            await asyncio.sleep(_RETRY_SECONDS)

    async def _ask(
        self,
        client: int,
        http: httpx.AsyncClient,
        url: str,
        body: dict[str, Any],
        trajectories: set[str],
    ) -> dict[str, Any] | None:
        sent_at = self.sent[client] = time.monotonic()
        outcome, status, message, response_id = Outcome.REFUSED, None, None, None
        try:
            async with http.stream("POST", url + CHAT, json=body) as answer:
                status = answer.status_code
                if status == 200:
                    outcome = Outcome.BROKEN
                data = await answer.aread()
            if status == 200 and b'data: {"error"' not in data:
                message = message_of_stream(data)
                response_id = json.loads(data.split(b"\n\n", 1)[0].removeprefix(b"data: "))["id"]
                trajectories.add(answer.headers["x-entrogate-trajectory-id"])
                outcome = Outcome.ANSWERED
            else:
                self.errors.append(data[-300:].decode(errors="replace"))
        except (httpx.TransportError, AssertionError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
        del self.sent[client]
        self.requests.append(
            Request(
                client=client,
                sent_at=sent_at,
                ended_at=time.monotonic(),
                outcome=outcome,
                status=status,
                response_id=response_id,
            )
        )
        return message

    def _result(self, call: dict[str, Any]) -> str:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            return "arguments are not an object"
        return execute(self._world, call["function"]["name"], arguments)

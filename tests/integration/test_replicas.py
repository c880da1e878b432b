"""Two gateway processes on one Postgres: conversations hop between them, one is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.processes import child, free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import CHAT, ask, calling, follow_up, message_of
from tests.integration.stored import trajectory_json

CLIENTS = 12
TRAJECTORY, VERSION = "x-entrogate-trajectory-id", "x-entrogate-weight-version"
DIALOGUE = (calling("Ada"), calling("Bo"), calling("Cy"), {"content": "The answer is 42."})


@dataclass(slots=True)
class Replicas:
    """Two running gateways; one of them may have been killed."""

    clients: list[httpx.AsyncClient]
    pids: list[int]
    gone: set[int] = field(default_factory=set[int])

    async def post(self, at: int, body: dict[str, Any]) -> tuple[int, httpx.Response]:
        """The answer and which gateway gave it: the next one where ``at`` is gone."""
        for number in (at % 2, (at + 1) % 2):
            if number not in self.gone:
                try:
                    return number, await self.clients[number].post(CHAT, json=body)
                except httpx.TransportError:
                    assert number in self.gone, "a gateway that was not killed does not answer"
        raise AssertionError("no gateway is left")

    def kill(self, number: int) -> None:
        self.gone.add(number)
        os.kill(self.pids[number], signal.SIGKILL)


@pytest.fixture
async def replicas(
    upstream: ScriptedUpstream, empty_postgres: str, folder: Path
) -> AsyncIterator[Replicas]:
    """Started at the same moment, on a database without tables."""
    environment = {
        "ENTROGATE_UPSTREAM__URL": upstream.url,
        "ENTROGATE_UPSTREAM__CAPTURE": "off",
        "ENTROGATE_STORE__URL": empty_postgres,
        "ENTROGATE_WEIGHTS__POLL_INTERVAL_SECONDS": "0.05",
    }
    ports = [free_port(), free_port()]
    running = [
        child(
            ("entrogate", "serve", "--port", str(port)),
            url=f"http://127.0.0.1:{port}",
            ready="/ready",
            log=folder / f"gateway-{port}.log",
            environment=environment,
        )
        for port in ports
    ]
    async with AsyncExitStack() as stack:
        began = [asyncio.to_thread(each.__enter__) for each in running]
        processes = await asyncio.gather(*began)
        for each in running:
            stack.push_async_callback(asyncio.to_thread, each.__exit__, None, None, None)
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
            )
            for port in ports
        ]
        yield Replicas(clients, [process.pid for process in processes])


async def converse(
    replicas: Replicas, first_at: int, body: dict[str, Any], next_body: Callable[..., Any]
) -> tuple[set[str], int, list[int]]:
    """Play to the end, each turn at the other gateway: the trajectories, turns, and who answered.

    A request that a kill broke off is asked again: that turn may then be stored twice.
    """
    ids: set[str] = set()
    asked_at: list[int] = []
    while True:
        number, answer = await replicas.post(first_at + len(asked_at), body)
        message = message_of(answer)
        asked_at.append(number)
        ids.add(answer.headers[TRAJECTORY])
        following = next_body(body, message, len(asked_at))
        if following is None:
            return ids, len(asked_at), asked_at
        body = following


def after_call(body: dict[str, Any], message: dict[str, Any], turns: int) -> dict[str, Any] | None:
    """The next request by the ids that we minted."""
    calls = message.get("tool_calls") or []
    return follow_up(body, message, *("found" for _ in calls)) if calls else None


def after_text(body: dict[str, Any], message: dict[str, Any], turns: int) -> dict[str, Any] | None:
    """The next request of a chat without tools: only what was said links it."""
    said = [message, {"role": "user", "content": "And then?"}]
    return None if turns == 4 else {**body, "messages": [*body["messages"], *said]}


async def stored(url: str, ids: set[str]) -> list[dict[str, Any]]:
    store = await asyncio.to_thread(Store.open, StoreSettings(url=url), read_only=True)
    try:
        return [await trajectory_json(store, id_) for id_ in sorted(ids)]
    finally:
        await store.aclose()


@pytest.mark.parametrize("by", ["minted ids", "what was said"])
async def test_a_conversation_hops(replicas: Replicas, empty_postgres: str, by: str) -> None:
    if by == "minted ids":
        ids, turns, at = await converse(replicas, 0, ask(*DIALOGUE), after_call)
    else:
        body = ask(*({"content": f"Part {n}."} for n in range(4)), tools=False)
        ids, turns, at = await converse(replicas, 1, body, after_text)
    assert len(set(at)) == 2
    assert len(ids) == 1
    (found,) = await stored(empty_postgres, ids)
    assert len(found["turns"]) == turns == 4
    parents = [None, *(each["id"] for each in found["turns"][:-1])]
    assert [each["parent_id"] for each in found["turns"]] == parents
    assert {each["branch_index"] for each in found["turns"]} == {0}
    assert found["complete"]


async def test_one_is_killed_under_load(replicas: Replicas, empty_postgres: str) -> None:
    """No turn whose answer came is missing, and every conversation goes on at the other one."""
    acknowledged: dict[str, int] = {}
    stop = asyncio.Event()

    async def client(number: int) -> None:
        round_ = 0
        while not stop.is_set():
            body = ask(*DIALOGUE, text=f"Client {number}, round {round_}:")
            round_ += 1
            ids, turns, _ = await converse(replicas, number, body, after_call)
            assert len(ids) == 1, "a conversation fell apart"
            acknowledged[ids.pop()] = turns

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    async with asyncio.timeout(60):
        while len(acknowledged) < 2 * CLIENTS:
            await asyncio.sleep(0.01)
        replicas.kill(0)
        before = len(acknowledged)
        while len(acknowledged) < before + 2 * CLIENTS:
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*clients)
    for found in await stored(empty_postgres, set(acknowledged)):
        turns = found["turns"]
        assert len(turns) >= acknowledged[found["id"]] == 4
        assert [each["turn_index"] for each in turns] == list(range(found["n_turns"]))
        tokens = {each["id"] for each in turns} | {None}
        assert all(each["parent_id"] in tokens for each in turns)
        assert found["complete"]


async def test_published_weights_are_those_of_all(
    replicas: Replicas, upstream: ScriptedUpstream, folder: Path
) -> None:
    """Published at one, routed to at both, taken back at the other after the first was killed."""
    lora = folder / "lora"
    lora.mkdir()
    config = {"r": 8, "base_model_name_or_path": "scripted"}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    (lora / "adapter_model.safetensors").write_text("weights")
    first, second = replicas.clients
    answer = await first.post("/admin/weights", json={"folder": str(lora), "share": 1})
    assert answer.status_code == 200, answer.text
    version = answer.json()["version"]
    body = ask({"content": "Hello."}, tools=False)

    async def answers_with(client: httpx.AsyncClient, wanted: str) -> None:
        async with asyncio.timeout(60):
            while (await client.post(CHAT, json=body)).headers[VERSION] != wanted:
                await asyncio.sleep(0.02)

    await answers_with(first, version)
    await answers_with(second, version)
    replicas.kill(0)
    assert (await second.delete(f"/admin/weights/{version}")).status_code == 200
    await answers_with(second, "base")
    async with asyncio.timeout(60):
        while upstream.adapters:
            await asyncio.sleep(0.02)

"""What slow, large and many requests cost the others: nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate.serve import bodies
from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, Running, ask, eventually
from tests.integration.keyed import bearer
from tests.integration.test_bounds import exchange, head

KEY = "a-static-secret-1"
MIB = 2**20


@asynccontextmanager
async def waiting(gateway: Running, sent: bytes, times: int) -> AsyncIterator[list[bytes]]:
    """Connections whose bodies do not come; what is answered to them meanwhile."""
    port = int(gateway.url.rpartition(":")[2])
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(times)]
    answered: list[bytes] = []

    async def listen(reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            answered.append(await reader.readline())

    listening = [asyncio.create_task(listen(reader)) for reader, _ in connections]
    try:
        for _, writer in connections:
            writer.write(sent)
            await writer.drain()
        yield answered
    finally:
        for task in listening:
            task.cancel()
        for _, writer in connections:
            writer.close()


@pytest.mark.parametrize(
    ("sent", "access"),
    [
        (head("POST", "/ui/login", 100) + b"key=", {"key": KEY}),
        (head("POST", CHAT, 100) + b"{", {"key": KEY}),
        (head("POST", CHAT, 100) + b"{", {}),
    ],
    ids=["to the login", "without a key", "where none is needed"],
)
async def test_slow_bodies_take_nobodys_place(
    start: Start, sent: bytes, access: dict[str, str]
) -> None:
    gateway = await start(serve={"max_requests": 2}, access=access)
    async with waiting(gateway, sent, 8):
        body = ask({"content": "Hello."}, tools=False)
        for _ in range(4):
            answer = await gateway.client.post(CHAT, json=body, headers=bearer(KEY))
            assert answer.status_code == 200


async def test_a_log_in_comes_through_however_many_wait(start: Start) -> None:
    """The oldest of those who wait makes room."""
    gateway = await start(access={"key": KEY})
    sent = head("POST", "/ui/login", 100) + b"key="
    async with waiting(gateway, sent, bodies.STRANGERS + 8) as answered:
        await eventually(lambda: len(answered) == 8)
        assert {line.split()[1] for line in answered} == {b"408"}
        entered = await gateway.client.post("/ui/login", data={"key": KEY})
        assert entered.status_code == 303


async def test_bodies_of_strangers_are_not_read(start: Start) -> None:
    """They are answered before they have come."""
    gateway = await start(access={"key": KEY})
    for path in (CHAT, "/v1/feedback", "/admin/weights", "/v1/nothing"):
        status, _ = await exchange(gateway, head("POST", path, 32 * MIB))
        assert status == 401, path


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/ui/login", 4 * 2**10),
        ("/ui/policy", 256 * 2**10),
        ("/v1/feedback", MIB),
        ("/admin/weights", 64 * 2**10),
    ],
)
async def test_small_routes_take_small_bodies(gateway: Running, path: str, limit: int) -> None:
    status, code = await exchange(gateway, head("POST", path, limit + 1))
    assert (status, code) == (413, "body_too_large")
    chunked = head("POST", path, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunked += b"%x\r\n%s\r\n" % (limit + 1, b"a" * (limit + 1))
    assert await exchange(gateway, chunked) == (413, "body_too_large")


async def test_all_bodies_together_have_a_budget(start: Start) -> None:
    gateway = await start(serve={"body_budget_bytes": 7 * MIB // 2})
    large = head("POST", CHAT, 3 * MIB) + b'{"a": "' + b"a" * (2 * MIB)
    async with waiting(gateway, large, 2) as answered:
        await eventually(lambda: len(answered) == 1)
        assert answered[0].split()[1] == b"503"  # the second would have been too much
        status, code = await exchange(gateway, head("POST", CHAT, 3 * MIB))
        assert (status, code) == (503, "overloaded")
        small = await gateway.chat(ask({"content": "Hello."}, tools=False))
        assert small.status_code == 200  # for these there is always room
    # What has gone is counted no more.
    body = ask({"content": "Hello."}, text="a" * 3 * MIB, tools=False)
    async with asyncio.timeout(60):
        while (await gateway.chat(body)).status_code == 503:
            await asyncio.sleep(0.05)


async def test_a_refusal_says_when_to_ask_again(start: Start) -> None:
    gateway = await start(serve={"body_budget_bytes": 1024})
    answer = await gateway.chat(ask({"content": "Hello."}, text="a" * MIB, tools=False))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"


# -- as a process ---------------------------------------------------------------------------------


@asynccontextmanager
async def served(
    folder: Path, upstream: str, **settings: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """`entrogate serve` as its own process."""
    port = free_port()
    command = ["-m", "entrogate", "serve", "--port", str(port), "--upstream", upstream]
    command += ["--store", f"sqlite:///{folder}/store.db"]
    environment = os.environ | {f"ENTROGATE_{k.upper()}": v for k, v in settings.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=url) as http:
            while True:
                with suppress(httpx.ConnectError):
                    if (await http.get("/health")).status_code == 200:
                        break
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_memory_of_many_large_bodies(upstream: ScriptedUpstream, folder: Path) -> None:
    """Twenty times 32 MB would be 640 MB."""
    settings = {"serve__body_budget_bytes": str(64 * MIB)}
    async with served(folder, upstream.url, **settings) as (url, process):
        before = resident_bytes(process.pid)
        port = int(url.rpartition(":")[2])
        most = 0

        async def send() -> None:
            with suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head("POST", CHAT, 32 * MIB) + b'{"a": "')
                for _ in range(31):
                    writer.write(b"a" * MIB)
                    async with asyncio.timeout(60):
                        await writer.drain()
                writer.close()

        async with asyncio.timeout(60):
            sending = asyncio.gather(*[send() for _ in range(20)], return_exceptions=True)
            while not sending.done():
                most = max(most, resident_bytes(process.pid))
                await asyncio.sleep(0.02)
        assert most - before < 200 * MIB


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def slow(seconds: float) -> dict[str, Any]:
    """A request that is answered token by token, so many seconds each."""
    return ask(
        {"content": "Hello, hello, hello, hello.", "delay": seconds}, tools=False, stream=True
    )


SLOW, ENDLESS = slow(0.3), slow(3.0)  # the other one is not over before it is cut off


@pytest.mark.parametrize("drain", ["60", "0.5"], ids=["ends by itself", "gets an end"])
async def test_a_gateway_that_is_stopped(
    upstream: ScriptedUpstream, folder: Path, drain: str
) -> None:
    """A running stream ends by itself, or with an event that says why; what is new is refused."""
    async with served(folder, upstream.url, serve__drain_seconds=drain) as (url, process):
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            http.stream("POST", CHAT, json=SLOW if drain == "60" else ENDLESS) as answer,
        ):
            data = b""
            parts = answer.aiter_bytes()
            data += await anext(parts)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60), httpx.AsyncClient(base_url=url) as other:
                while True:  # either it says that it is not ready, or it takes no connection
                    try:
                        ready = await other.get("/ready", headers={"connection": "close"})
                    except httpx.TransportError:
                        break
                    assert ready.status_code in (200, 503)
                    if ready.status_code == 503:
                        assert ready.json()["status"] == "stopping"
            async for part in parts:
                data += part
        assert data.endswith(b"data: [DONE]\n\n")
        assert (b"gateway_stopping" in data) == (drain == "0.5")
        async with asyncio.timeout(60):
            assert await process.wait() == 0


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_each_api_is_told_its_way(
    upstream: ScriptedUpstream, folder: Path, path: str
) -> None:
    body = ENDLESS | {"max_tokens": 100}
    if path == "/v1/responses":
        body = {"model": "scripted", "input": body["messages"], "stream": True}
    async with served(folder, upstream.url, serve__drain_seconds="0.3") as (url, process):
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            http.stream("POST", path, json=body) as answer,
        ):
            parts = answer.aiter_bytes()
            data = await anext(parts)
            process.send_signal(signal.SIGTERM)
            async for part in parts:
                data += part
        last = data.decode().split("\n\n")[-2]
        assert last.startswith("event: error\ndata: {")
        assert "being stopped" in last


async def test_an_answer_in_one_piece_is_told_too(upstream: ScriptedUpstream, folder: Path) -> None:
    body = ENDLESS | {"stream": False}
    async with served(folder, upstream.url, serve__drain_seconds="0.3") as (url, process):
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            asking = asyncio.create_task(http.post(CHAT, json=body))
            await eventually(lambda: upstream.stats.open == 1)
            process.send_signal(signal.SIGTERM)
            answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_stopping")
        assert answer.headers["retry-after"] == "1"

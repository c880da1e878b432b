"""Clients that vanish or read slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.chaos.load import MODEL, Load
from tests.chaos.measuring import Result, Setup, measure, sqlite_url
from tests.chaos.stack import Gateway
from tests.integration.harness import CHAT


async def clients_vanish(setup: Setup) -> Sequence[Result]:
    """As many clients again break their connections off in mid-stream, over and over."""
    store = sqlite_url(setup, "vanish")
    async with (
        setup.gateways.running(upstream__url=setup.vllm, store__url=store) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        gone = 0

        async def vanish(until: float) -> None:
            nonlocal gone
            body = long_answer(tokens=200)
            while time.monotonic() < until:
                async with http.stream("POST", CHAT, json=body) as answer:
                    async for _ in answer.aiter_bytes():
                        break  # leaving closes the connection
                gone += 1

        async def fault() -> None:
            until = time.monotonic() + setup.seconds
            await asyncio.gather(*(vanish(until) for _ in range(setup.clients)))

        async with Load([gateway.url], setup.clients).running() as load:
            result = await measure(
                f"clients vanish for {setup.seconds:g} s",
                load,
                fault,
                store_url=store,
                gateways=[gateway],
                note=lambda: f"{gone} answers were broken off",
            )
        async with asyncio.timeout(30):
            while await gateway.metric("entrogate_requests_in_flight") or await running(setup.vllm):
                await asyncio.sleep(0.1)
        return [result]


async def clients_read_slowly(setup: Setup) -> Sequence[Result]:
    """Clients take a few kB a second of long answers; in the end they have them whole."""
    store = sqlite_url(setup, "slow")
    async with (
        setup.gateways.running(upstream__url=setup.vllm, store__url=store) as gateway,
        Load([gateway.url], setup.clients).running() as load,
    ):
        sizes: list[int] = []

        async def fault() -> None:
            until = time.monotonic() + setup.seconds
            sizes.extend(await asyncio.gather(*(dawdle(gateway, until) for _ in range(4))))

        return [
            await measure(
                f"4 clients read slowly for {setup.seconds:g} s",
                load,
                fault,
                store_url=store,
                gateways=[gateway],
                note=lambda: f"{min(sizes) >> 10} kB and more each, whole in the end",
            )
        ]


async def running(vllm: str) -> float:
    """Requests that vLLM works on."""
    async with httpx.AsyncClient(base_url=vllm, timeout=30) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def long_answer(*, tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Where does Ada live?"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 5,
    }


async def dawdle(gateway: Gateway, until: float) -> int:
    """Read a few kB at a time until then, the rest at once; bytes of the answer."""
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
    body = httpx.Request("POST", gateway.url, json=long_answer(tokens=1000)).content
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    data = bytearray()
    while part := await reader.read(4096):
        data += part
        if time.monotonic() < until:
            await asyncio.sleep(1.0)
    writer.close()
    assert data.startswith(b"HTTP/1.1 200"), data[:200]
    assert b"data: [DONE]\n\n" in data, data[-200:]
    return len(data)

"""Limits: requests a minute, requests at a time, and how long one may take."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Start
from tests.integration.harness import CHAT, Running, ask, events
from tests.integration.keyed import Keys, bearer, gateway, keys

__all__ = ["gateway", "keys"]
pytestmark = pytest.mark.both_stores


async def test_requests_per_minute(gateway: Running, keys: Keys) -> None:
    secret = await keys.make("read", rpm=20)  # one comes back every 3 s
    answers = [
        await gateway.client.get("/v1/trajectories", headers=bearer(secret)) for _ in range(70)
    ]
    limited = [each for each in answers if each.status_code == 429]
    assert limited
    assert limited[0].json()["error"]["type"] == "rate_limit_error"
    assert int(limited[0].headers["retry-after"]) >= 1
    assert {each.status_code for each in answers} == {200, 429}


async def test_requests_at_a_time(gateway: Running, keys: Keys, start: Start) -> None:
    secret = await keys.make("infer", concurrency=1)
    body = ask({"content": "Hello, hello, hello.", "delay": 0.2}, tools=False, stream=True)
    async with gateway.client.stream("POST", CHAT, json=body, headers=bearer(secret)) as first:
        await anext(first.aiter_bytes())
        answer = await gateway.client.post(CHAT, json=body, headers=bearer(secret))
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "concurrency_limit_exceeded"
    async with asyncio.timeout(60):
        while (
            await gateway.client.post(CHAT, json={**body, "stream": False}, headers=bearer(secret))
        ).status_code != 200:
            await asyncio.sleep(0.05)


async def test_the_gateway_as_a_whole_has_a_limit(start: Start) -> None:
    gateway = await start(serve={"max_requests": 1})
    body = ask({"content": "Hello, hello, hello.", "delay": 0.2}, tools=False, stream=True)
    async with gateway.client.stream("POST", CHAT, json=body) as first:
        await anext(first.aiter_bytes())
        answer = await gateway.client.post(CHAT, json=body)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "overloaded"
        assert "retry-after" in answer.headers
        assert (await gateway.client.get("/health")).status_code == 200


async def test_a_body_that_does_not_come(start: Start) -> None:
    gateway = await start(serve={"body_timeout_seconds": 0.2})
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode())
    writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    head = await reader.readline()
    writer.close()
    assert b" 408 " in head


async def test_a_request_that_takes_too_long(start: Start) -> None:
    gateway = await start(serve={"request_timeout_seconds": 0.3})
    body = ask({"content": "Hello, hello, hello, hello.", "delay": 0.5}, tools=False)
    answer = await gateway.chat(body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    _, stream = await gateway.stream(body)
    *_, last = events(stream)
    assert last["error"]["code"] == "request_timeout"
    assert await gateway.metric("entrogate_requests_in_flight") == 0

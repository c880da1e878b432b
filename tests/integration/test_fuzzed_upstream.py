"""Answers of the model server, damaged in every way: no 500, no hang, and the next one is fine.

``E2E_FULL=1`` sends 10,000 of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    SURE,
    ask,
    calling,
    events,
    eventually,
    message_of,
    policy_file,
)

ANSWERS = 10_000 if os.environ.get("E2E_FULL") == "1" else 400  # of each kind of capture
BATCH = 16
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, -0.0, "", "x" * 5000, "\ud800", "\0", [], {}, [[]],
    [None], {"a": 1}, [{}], "<tool_call>", "</think>", "data: [DONE]", float("nan"),
)  # fmt: skip


class Damage:
    """Passes everything on to the scripted upstream, and damages what comes back from it."""

    def __init__(self, upstream: str) -> None:
        self.on = False
        self.url = ""
        self._rng = random.Random(5)
        self._http = httpx.AsyncClient(base_url=upstream, timeout=30)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app)

    async def __aenter__(self) -> Damage:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._http.aclose()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        got = await self._http.request(
            request.method, request.raw_path, content=await request.read(), headers=HEADERS
        )
        headers = {"Content-Type": got.headers["content-type"]}
        if not self.on or "completions" not in request.path:
            return web.Response(body=got.content, status=got.status_code, headers=headers)
        rng = self._rng
        body = got.content
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            body = rng.choice(DAMAGES)(body, rng)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        while body:
            cut = rng.choice((1, 7, 100, 4096, len(body)))
            await response.write(body[:cut])
            body = body[cut:]
        if rng.random() < 0.2:
            assert request.transport is not None
            request.transport.abort()  # instead of an end
        return response


HEADERS = {"Content-Type": "application/json"}


def flip(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 3, 30))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncate(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def events_differently(body: bytes, rng: random.Random) -> bytes:
    """Events doubled, lost, out of order, empty, joined; other line ends, comments, fields."""
    parts = body.split(b"\n\n")
    at = rng.randrange(len(parts))
    kind = rng.randrange(7)
    if kind == 0:
        parts.insert(at, parts[at])
    elif kind == 1:
        del parts[at]
    elif kind == 2:
        rng.shuffle(parts)
    elif kind == 3:
        parts[at] = rng.choice((b"", b": ping", b"event: x\nid: 7", b"data:", b"data: {}"))
    elif kind == 4:
        return body.replace(b"\n\n", b"\n", rng.randrange(5))
    elif kind == 5:
        return body.replace(b"\n", b"\r\n")
    else:
        parts.insert(at, b"data: [DONE]")
    return b"\n\n".join(parts)


def values(body: bytes, rng: random.Random) -> bytes:
    """Something else at some place of the JSON of an event, or of the body."""
    parts = body.split(b"\n\n")
    at = rng.randrange(len(parts))
    prefix = b"data: " if parts[at].startswith(b"data: ") else b""
    try:
        tree = json.loads(parts[at].removeprefix(b"data: "))
    except (ValueError, RecursionError):
        return body
    places: list[tuple[Any, Any]] = []
    open_ = [tree]
    while open_:
        node = open_.pop()
        if not isinstance(node, dict | list):
            continue
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            open_.append(node[key])
    node, key = rng.choice(places) if places else ([tree], 0)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(JUNK)
    parts[at] = prefix + json.dumps(tree).encode()
    return b"\n\n".join(parts)


def something_else(body: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0" * 100, b"<html>", rng.randbytes(300), b"data: " + b"[" * 100_000))


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    values, values, values, events_differently, events_differently, flip, truncate, something_else,
)  # fmt: skip


@pytest_asyncio.fixture(params=[False, True], ids=["log-probs", "engine"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedUpstream]:
    """Captured by log-probs, and exactly: by the engine, whose messages are not damaged."""
    async with ScriptedUpstream(engine=request.param) as server:
        yield server


@pytest.fixture
async def damage(upstream: ScriptedUpstream) -> AsyncIterator[Damage]:
    async with Damage(upstream.url) as between:
        yield between


async def test_damaged_answers(
    upstream: ScriptedUpstream,
    damage: Damage,
    start: Start,
    folder: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = policy_file(folder, defaults={"threshold": 1.5, "on_repeat": "replay"})
    settings = {"read_timeout_seconds": 20, "capture": upstream.captures}
    gateway = await start(damage.url, policy=policy, upstream=settings)
    bodies = [
        ask(calling("Ada", confidence=SURE), {"content": "Then without."}),
        ask(calling("Ada", "Bo")),
        ask({"reasoning": "Let me see what I know", "content": "Plain text."}, tools=False),
        ask(calling("Ada"), n=2),
    ]
    assert (await gateway.chat(bodies[0])).status_code == 200
    damage.on = True
    failures: list[Any] = []

    async def one(number: int) -> None:
        body = {**bodies[number % len(bodies)], "stream": number % 3 != 0}
        async with gateway.client.stream("POST", CHAT, json=body) as answer:
            data = await answer.aread()
        if answer.status_code >= 500 and answer.status_code not in (502, 504):
            failures.append((answer.status_code, data))
        elif b"internal_error" in data:
            failures.append(data[-300:])

    with caplog.at_level(logging.WARNING):
        for start_ in range(0, ANSWERS, BATCH):
            await asyncio.gather(*(one(start_ + n) for n in range(BATCH)))
    assert failures == []
    assert [each.getMessage() for each in caplog.records if each.exc_info] == []
    damage.on = False
    assert message_of(await gateway.chat(bodies[2]))["content"].strip() == "Plain text."
    _, stream = await gateway.stream(bodies[1])
    assert events(stream)
    channel = gateway.gateway.channel
    if channel is not None:
        await eventually(lambda: not channel._requests and not channel._streams)
        assert channel.malformed == 0
    assert await gateway.metric("entrogate_requests_in_flight") == 0
    assert await gateway.metric("entrogate_store_errors_total") == 0

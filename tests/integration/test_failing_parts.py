"""Failing upstream, client or store: a clear error, nothing lost, and it is counted."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from entrogate.errors import ConfigError, StoreError
from entrogate.serve.app import create_app
from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    Running,
    ask,
    calling,
    error_of,
    events,
    eventually,
    message_of,
    policy_file,
    running,
    same_bytes,
    settings,
)

TEXT = {"content": "Plain text, nothing else, but long enough to break in the middle."}


# The upstream


async def test_unreachable_upstream(start: Start) -> None:
    gateway = await start(f"http://127.0.0.1:{free_port()}")
    for stream in (False, True):
        error = error_of(await gateway.chat(ask(TEXT, stream=stream)), 502)
        assert error["code"] == "upstream_unavailable"
    assert (await gateway.client.get("/health")).status_code == 200
    assert (await gateway.client.get("/ready")).status_code == 503
    name = "entrogate_upstream_errors_total"
    assert await gateway.metric(name, kind="UpstreamUnavailable") >= 2


async def test_an_upstream_that_comes_later(start: Start) -> None:
    port = free_port()
    gateway = await start(f"http://127.0.0.1:{port}")
    assert (await gateway.client.get("/ready")).status_code == 503
    late = ScriptedUpstream()
    await late.start(port=port)
    try:
        assert (await gateway.client.get("/ready")).status_code == 200
        assert (await gateway.chat(ask(TEXT))).status_code == 200
    finally:
        await late.aclose()


async def test_an_upstream_that_is_no_vllm(start: Start) -> None:
    async def anything(_: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", anything)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        gateway = await start(f"http://127.0.0.1:{runner.addresses[0][1]}")
        error = error_of(await gateway.chat(ask(TEXT)), 502)
        assert error["code"] == "upstream_protocol"
        assert (await gateway.client.get("/ready")).status_code == 503
    finally:
        await runner.cleanup()


async def test_wrong_api_key(start: Start) -> None:
    async with ScriptedUpstream(api_key="right") as guarded:
        wrong = await start(guarded.url, upstream={"api_key": "wrong"})
        response = await wrong.chat(ask(TEXT))
        assert response.status_code in (401, 502)
        assert "key" in response.text.lower()


async def test_right_api_key(start: Start) -> None:
    async with ScriptedUpstream(api_key="right") as guarded:
        right = await start(guarded.url, upstream={"api_key": "right"})
        assert (await right.chat(ask(TEXT))).status_code == 200
        assert (await right.client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_errors_of_the_upstream_pass_as_they_are(
    upstream: ScriptedUpstream, gateway: Running, status: int
) -> None:
    body = ask({"fault": "error", "status": status})
    async with httpx.AsyncClient() as direct:
        wanted = await direct.post(upstream.url + CHAT, json=body)
    for stream in (False, True):
        got = await gateway.chat({**body, "stream": stream})
        assert (got.status_code, got.content) == (status, wanted.content)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_in_plain_text_gets_an_envelope(gateway: Running, stream: bool) -> None:
    got = await gateway.chat(ask({"fault": "plain_error", "status": 500}, stream=stream))
    assert got.headers["content-type"] == "application/json"
    assert error_of(got, 500) == {
        "message": "the model server answered 500: Internal Server Error",
        "type": "upstream_error",
        "param": None,
        "code": "upstream_error",
    }


async def test_a_body_that_breaks_off(gateway: Running) -> None:
    error = error_of(await gateway.chat(ask({**TEXT, "fault": "cut"})), 502)
    assert error["code"] == "upstream_unavailable"


@pytest.mark.parametrize("fault", ["cut", "end"])
async def test_a_stream_that_breaks_off(gateway: Running, fault: str) -> None:
    response, stream = await gateway.stream(ask({**TEXT, "fault": fault, "at": 5}))
    assert response.status_code == 200
    *chunks, last = events(stream)
    assert [c["choices"][0]["delta"].get("content") for c in chunks[1:]] == [
        "Plain",
        " text",
        ",",
        " nothing",
    ]
    assert last["error"]["code"] == "upstream_unavailable"
    found = await gateway.trajectory(response)
    (turn,) = found["turns"]
    assert turn["capture_gap"]
    assert turn["error"]
    assert found["complete"] is False


async def test_an_error_event_of_the_upstream_passes(gateway: Running) -> None:
    response, stream = await gateway.stream(ask({**TEXT, "fault": "sse_error", "at": 4}))
    *chunks, last = events(stream)
    assert len(chunks) == 4
    assert last["error"] == {
        "message": "scripted error",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["error"]


@pytest.mark.parametrize("at", [0, 4])
async def test_garbage_in_a_stream(gateway: Running, at: int) -> None:
    response, stream = await gateway.stream(ask({**TEXT, "fault": "garbage", "at": at}))
    assert response.status_code == 200
    *chunks, last = events(stream)
    assert len(chunks) == at
    assert last["error"]["code"] == "upstream_protocol"


async def test_garbage_for_a_body(gateway: Running) -> None:
    error = error_of(await gateway.chat(ask({**TEXT, "fault": "garbage"})), 502)
    assert error["code"] == "upstream_protocol"


@pytest.mark.parametrize(
    ("fault", "gap", "mode"),
    [
        ("no_logprobs", "logprobs_missing", "enforce"),
        ("no_token_ids", "token_ids_missing", "enforce"),
        ("lost_token", "count_mismatch", "observe"),  # seen when the answer has ended
    ],
)
async def test_capture_gaps(
    upstream: ScriptedUpstream, start: Start, folder: Path, fault: str, gap: str, mode: str
) -> None:
    """The client gets its answer, the call is not gated, and the gap is recorded and counted."""
    rules: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
    gateway = await start(policy=policy_file(folder, mode=mode, **rules))
    body = ask(calling("Ada", fault=fault))
    async with httpx.AsyncClient() as direct:
        wanted = await direct.post(upstream.url + CHAT, json={**body, "stream": True})
    response, stream = await gateway.stream(body)
    if fault != "lost_token":  # which event that is depends on what was asked for
        assert same_bytes(stream) == same_bytes(wanted.content)
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["capture_gap"] == gap
    decision = turn["calls"][0]["decision"]
    assert (decision["applied"], decision["reason"]) == ("allow", "capture_gap")
    assert await gateway.metric("entrogate_capture_gaps_total", reason=gap) == 1


async def test_slow_upstream_times_out(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = await start(upstream={"read_timeout_seconds": 0.3})
    error = error_of(await gateway.chat(ask({**TEXT, "fault": "stall"})), 504)
    assert error["code"] == "upstream_timeout"
    _, stream = await gateway.stream(ask({**TEXT, "fault": "stall", "at": 3}))
    *chunks, last = events(stream)
    assert len(chunks) == 3
    assert last["error"]["code"] == "upstream_timeout"
    await eventually(lambda: upstream.stats.open == 0)


# The client


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_is_cancelled_upstream(
    upstream: ScriptedUpstream, gateway: Running, stream: bool
) -> None:
    body = ask({**TEXT, "fault": "stall", "at": 4}, stream=stream)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        if stream:
            async with client.stream("POST", CHAT, json=body) as response:
                async for _ in response.aiter_raw():
                    break
        else:
            asking = asyncio.create_task(client.post(CHAT, json=body, timeout=60))
            await eventually(lambda: upstream.stats.open == 1)
            asking.cancel()
            await asyncio.wait([asking])
    await eventually(lambda: upstream.stats.aborted == 1)
    assert upstream.stats.open == 0
    if stream:
        found = await gateway.trajectory(response)
        (turn,) = found["turns"]
        assert turn["error"]
        assert found["complete"] is False
    assert (await gateway.chat(ask(TEXT))).status_code == 200


# The store


async def test_a_store_that_cannot_be_opened(upstream: ScriptedUpstream, folder: Path) -> None:
    bad = settings(upstream.url, folder, store={"url": f"sqlite:///{folder}/none/such/store.db"})
    with pytest.raises(StoreError):
        create_app(bad)
    (folder / "text.db").write_text("this is not a database, it is a text of some length" * 40)
    with pytest.raises(StoreError):
        create_app(settings(upstream.url, folder, store={"url": f"sqlite:///{folder}/text.db"}))
    with pytest.raises(ConfigError):
        create_app(settings(upstream.url, folder, policy="nonsense"))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_store_that_fails_later(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    """Recording faults never break a response; they are counted, and it works again after."""
    gateway = await start()
    first = await gateway.chat(ask(TEXT))
    blocker = sqlite3.connect(folder / "store.db")
    blocker.execute(
        "CREATE TRIGGER full BEFORE INSERT ON turns BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    blocker.commit()
    body = ask(TEXT, text="Again?", stream=stream)
    async with httpx.AsyncClient() as direct:
        wanted = await direct.post(upstream.url + CHAT, json=body)
    got = await gateway.chat(body)
    assert (got.status_code, same_bytes(got.content)) == (200, same_bytes(wanted.content))
    assert await gateway.metric("entrogate_store_errors_total") == 1
    blocker.execute("DROP TRIGGER full")
    blocker.commit()
    blocker.close()
    third = await gateway.chat(ask(TEXT, text="And now?"))
    listed = (await gateway.client.get("/v1/trajectories")).json()["data"]
    recorded = {t["id"] for t in listed}
    assert first.headers["x-entrogate-trajectory-id"] in recorded
    assert third.headers["x-entrogate-trajectory-id"] in recorded
    assert got.headers["x-entrogate-trajectory-id"] not in recorded


async def test_a_crash_between_requests_loses_nothing(
    upstream: ScriptedUpstream, folder: Path
) -> None:
    known: list[str] = []
    for _ in range(2):
        async with running(settings(upstream.url, folder)) as gateway:
            response = await gateway.chat(ask(calling("Ada")))
            known.append(response.headers["x-entrogate-trajectory-id"])
            message_of(response)
    async with running(settings(upstream.url, folder)) as gateway:
        listed = (await gateway.client.get("/v1/trajectories")).json()["data"]
    assert {t["id"] for t in listed} == set(known)

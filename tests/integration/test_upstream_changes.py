"""The model server is replaced while the gateway runs: turns are measured by what is there now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from entrogate.errors import UpstreamUnavailable
from entrogate.upstream import watch as watch_module
from entrogate.upstream.capabilities import Capabilities
from entrogate.upstream.handshake import Identity
from entrogate.upstream.watch import UpstreamWatch
from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, ask, error_of, eventually
from tests.integration.raw_upstream import CHAT_BODY, json_answer, raw_upstream

FAST = {"watch_interval_seconds": 0.05}
SLOW = {"watch_interval_seconds": 3600}
TEXT = {"content": "Hello."}


async def restarted(port: int, **options: Any) -> ScriptedUpstream:
    upstream = ScriptedUpstream(**options)
    await upstream.start(port=port)
    return upstream


async def test_the_first_turn_after_an_outage_knows_the_new_server(start: Start) -> None:
    port = free_port()
    first = await restarted(port, model="first")
    gateway = await start(first.url, upstream=SLOW)
    assert (await gateway.chat(ask(TEXT, model="first"))).status_code == 200
    await first.aclose()
    assert error_of(await gateway.chat(ask(TEXT, model="first")), 502)
    second = await restarted(port, model="second", max_model_len=77)
    try:
        assert (await gateway.chat(ask(TEXT, model="second"))).status_code == 200
        found = await gateway.gateway.capabilities()
        assert (found.model, found.max_model_len, found.base_models) == ("second", 77, {"second"})
        assert await gateway.metric("entrogate_upstream_info", model="second") == 1
        assert await gateway.metric("entrogate_upstream_info", model="first") == 0
    finally:
        await second.aclose()


async def test_another_model_is_noticed_without_an_outage(start: Start) -> None:
    names = ["one"]

    def models(_: Any) -> bytes:
        return json_answer({"data": [{"id": names[-1]}]})

    async with raw_upstream({"/v1/models": models, CHAT: json_answer(CHAT_BODY)}) as upstream:
        gateway = await start(upstream.url, upstream=FAST)
        assert (await gateway.gateway.capabilities()).model == "one"
        names.append("two")
        await eventually(lambda: gateway.gateway.watch.changes == 1)
        assert (await gateway.gateway.capabilities()).model == "two"


async def test_looking_is_cheap_and_takes_no_generation(start: Start) -> None:
    async with raw_upstream({CHAT: json_answer(CHAT_BODY)}) as upstream:
        await start(upstream.url, upstream=FAST)
        asked = len(upstream.asked)
        await eventually(lambda: len(upstream.asked) > asked + 5)
        assert set(upstream.paths()[asked:]) == {"/v1/models"}


FOUND = Capabilities(
    model="m",
    max_model_len=None,
    top_logprobs=5,
    token_ids=True,
    tool_call_token_id=1,
    tool_call_end_token_id=None,
    reasoning_start_token_id=None,
    reasoning_end_token_id=None,
    control_token_ids=frozenset(),
    vocab_size=10,
    system_fingerprint="a",
    engine=True,
)


class Server:
    """What the watch asks, with what it says next."""

    def __init__(self) -> None:
        self.says: Capabilities | None = FOUND
        self.asked = 0
        self.hold: Awaitable[Any] | None = None

    async def ask(self) -> Capabilities:
        self.asked += 1
        if self.hold is not None:
            await self.hold
        if self.says is None:
            raise UpstreamUnavailable("gone")
        return self.says

    async def glance(self) -> Identity:
        if self.says is None:
            raise UpstreamUnavailable("gone")
        return ((self.says.model, "", None),)

    def watched(self, on_found: Callable[[Capabilities], None] = lambda _: None) -> UpstreamWatch:
        return UpstreamWatch(
            ask=self.ask, glance=self.glance, on_found=on_found, interval_seconds=0.05
        )


async def test_asked_once_however_many_wait() -> None:
    server = Server()
    watch = server.watched()
    assert set(await asyncio.gather(*(watch.capabilities() for _ in range(20)))) == {FOUND}
    assert server.asked == 1


async def test_all_who_wait_are_told_that_it_is_not_there() -> None:
    """One after another, the last of many would wait for as many time limits."""
    server = Server()
    server.says = None
    seen: list[int] = []
    real = server.glance

    async def glance() -> Identity:
        seen.append(1)
        await asyncio.sleep(0.01)
        return await real()

    server.glance = glance
    watch = server.watched()
    told = await asyncio.gather(*(watch.capabilities() for _ in range(20)), return_exceptions=True)
    assert {type(each) for each in told} == {UpstreamUnavailable}
    assert len(seen) == 1
    server.says = FOUND
    assert await watch.capabilities() == FOUND


async def test_one_who_leaves_takes_nobody_along() -> None:
    server = Server()
    server.hold = asyncio.Event().wait()
    watch = server.watched()
    async with watch.running():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.capabilities(), 0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.capabilities(), 0.01)
        assert server.asked == 1


async def test_a_doubt_is_looked_into_in_the_background_and_turns_keep_theirs() -> None:
    server, told = Server(), list[Capabilities]()
    watch = server.watched(told.append)
    mine = await watch.capabilities()
    async with watch.running():
        server.says = replace(FOUND, engine=False)  # came back without the plugin, same model
        go_on = asyncio.Event()
        server.hold = go_on.wait()
        watch.suspect("no capture arrives")
        await eventually(lambda: server.asked == 2)
        assert await watch.capabilities() is mine, "a turn does not wait for it"
        go_on.set()
        await eventually(lambda: watch.changes == 1)
        assert (await watch.capabilities()).engine is False
        assert mine.engine is True
    assert told == [FOUND, server.says]


async def test_a_turn_waits_a_bounded_time_for_others_who_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The background asks a server that hangs, for as long as a read may take."""
    monkeypatch.setattr(watch_module, "_PATIENCE_SECONDS", 0.05)
    server = Server()
    watch = server.watched()
    mine = await watch.capabilities()
    async with watch.running():
        server.hold = asyncio.Event().wait()  # for ever
        watch.lost()
        await eventually(lambda: server.asked == 2)
        async with asyncio.timeout(60):
            assert await watch.capabilities() is mine
    assert server.asked == 2


async def test_many_doubts_are_few_questions() -> None:
    server = Server()
    watch = server.watched()
    await watch.capabilities()
    async with watch.running():
        for _ in range(50):
            watch.suspect("no capture arrives")
        await eventually(lambda: server.asked == 2)
    assert watch.changes == 0


async def test_a_server_that_is_away_is_asked_until_it_is_back() -> None:
    server = Server()
    watch = server.watched()
    await watch.capabilities()
    async with watch.running():
        server.says = None
        watch.lost()
        await asyncio.sleep(0.1)
        server.says = replace(FOUND, model="other")
        await eventually(lambda: watch.changes == 1)
    assert (await watch.capabilities()).model == "other"

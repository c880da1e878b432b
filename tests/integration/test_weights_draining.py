"""Weights that are rolled back: their trajectories end on them, and then they are unloaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, Running, events
from tests.integration.publishing import (
    POLL,
    STALLED,
    VERSION,
    busy,
    gone,
    lora,
    publish,
    roll_back,
    table,
    version_of_new,
)

pytestmark = pytest.mark.both_stores


async def test_draining_waits_for_the_last_turn(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gateway = await start(weights=POLL)
    new = await publish(gateway, lora(folder / "one", "a"), share=1)
    running = asyncio.create_task(gateway.stream(STALLED))
    await busy(gateway, new["version"])
    await roll_back(gateway, new["version"])
    assert await version_of_new(gateway, 5) == {"base": 5}
    assert (await table(gateway))[new["version"]]["state"] == "draining"
    assert new["name"] in upstream.adapters
    upstream.go_on.set()
    response, raw = await running
    assert response.headers[VERSION] == new["version"]
    assert events(raw)[-1]["choices"][0]["finish_reason"] == "stop"
    await gone(gateway, new["version"])
    assert upstream.adapters == {}


async def test_draining_does_not_wait_for_ever(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gateway = await start(weights={**POLL, "drain_timeout_seconds": 0.1})
    new = await publish(gateway, lora(folder / "one", "a"), share=1)
    stalled = asyncio.create_task(gateway.stream(STALLED))
    await busy(gateway, new["version"])
    await roll_back(gateway, new["version"])
    await gone(gateway, new["version"])
    assert upstream.adapters == {}
    stalled.cancel()
    await asyncio.gather(stalled, return_exceptions=True)


async def test_a_drain_is_ended_by_another_gateway_of_the_store(
    start: Start, upstream: ScriptedUpstream, folder: Path, empty_postgres: str
) -> None:
    """As one that was restarted in the middle of it does; the turn that runs is vLLM's to end."""
    first = await start(weights=POLL, store={"url": empty_postgres})
    new = await publish(first, lora(folder / "one", "a"), share=1)
    running = asyncio.create_task(first.stream(STALLED))
    await busy(first, new["version"])
    await roll_back(first, new["version"])
    second = await start(weights=POLL, store={"url": empty_postgres})
    await gone(second, new["version"])
    assert upstream.adapters == {}
    upstream.go_on.set()
    response, raw = await running
    assert response.headers[VERSION] == new["version"]
    assert events(raw)[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_client_that_leaves_holds_nothing(gateway: Running, folder: Path) -> None:
    new = await publish(gateway, lora(folder / "one", "a"), share=1)
    for stream in (True, False):
        request = gateway.client.post(CHAT, json={**STALLED, "stream": stream})
        asking = asyncio.create_task(request)
        await busy(gateway, new["version"])
        asking.cancel()
    async with asyncio.timeout(60):
        while (await table(gateway))[new["version"]]["in_flight"]:
            await asyncio.sleep(0.01)

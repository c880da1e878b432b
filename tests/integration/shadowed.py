"""Helpers of the tests of shadows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import Running, ask, eventually

ALL: dict[str, Any] = {"share": 1.0}


async def settled(gateway: Running) -> None:
    """Wait until no shadow and no grading is under way."""
    parts = gateway.gateway
    await eventually(lambda: parts.shadows.idle and parts.grading.idle)


async def turns_of(gateway: Running, response: httpx.Response, **params: Any) -> list[Any]:
    """The turns of its trajectory, once its shadows are there."""
    await settled(gateway)
    return (await gateway.trajectory(response, **params))["turns"]


def completions(upstream: ScriptedUpstream) -> list[dict[str, Any]]:
    """The bodies with which turns went on without their calls."""
    found = [json.loads(body) for body in upstream.stats.bodies]
    return [body for body in found if isinstance(body.get("prompt"), list)]


@asynccontextmanager
async def busy(gateway: Running, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """A client's turn is under way, and goes on to its end when this is left."""
    step = {"content": "one two three four five", "fault": "stall", "at": 3}
    held = asyncio.create_task(gateway.stream(ask(step, text="hold")))
    await eventually(lambda: upstream.stats.open == 1)
    try:
        yield
    finally:
        upstream.go_on.set()
        await held


async def start_shadowing(start: Start, **options: Any) -> Running:
    """A gateway with a shadow for every call, but for what ``options`` say of `shadow`."""
    shadow = ALL | options.pop("shadow", {})
    return await start(**options, shadow=shadow)

"""The scripted upstream and a gateway in front of it, for every test of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import Running, running, settings

Start = Callable[..., Awaitable[Running]]


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as server:
        yield server


@pytest_asyncio.fixture
async def start(upstream: ScriptedUpstream, tmp_path: Path, store_url: str) -> AsyncIterator[Start]:
    """Starts gateways in front of the upstream: ``await start(policy="balanced", …)``."""
    async with AsyncExitStack() as stack:

        async def begin(url: str | None = None, **options: Any) -> Running:
            options["store"] = {"url": store_url} | options.get("store", {})
            chosen = settings(url or upstream.url, tmp_path, **options)
            return await stack.enter_async_context(running(chosen))

        yield begin


@pytest_asyncio.fixture
async def gateway(start: Start) -> Running:
    """A gateway that observes."""
    return await start()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path

"""Faults of the database, while gateways record."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing

from tests.chaos.load import Load
from tests.chaos.measuring import Result, Setup, measure, replicas, sqlite_url
from tests.chaos.stack import Gateway


async def postgres_restarted(setup: Setup) -> Sequence[Result]:
    """Postgres crashes and is started again at once."""
    return await _postgres_away(setup, "Postgres crashes and restarts", 0.0, patience=10.0)


async def postgres_stopped(setup: Setup) -> Sequence[Result]:
    """Postgres is away for longer than answers wait for it."""
    name = f"Postgres is away for {setup.seconds:g} s"
    return await _postgres_away(setup, name, setup.seconds, patience=1.0)


async def _postgres_away(
    setup: Setup, name: str, seconds: float, *, patience: float
) -> Sequence[Result]:
    cluster = setup.postgres.cluster
    assert cluster is not None, "the server is not ours to stop"
    async with replicas(setup, patience=patience) as (store, gateways):
        deferred = [0.0]

        async def restart() -> None:
            await asyncio.to_thread(cluster.stop)
            await asyncio.sleep(seconds)
            deferred[0] = sum([await g.metric("entrogate_store_deferred") for g in gateways])
            await asyncio.to_thread(cluster.start)

        urls = [gateway.url for gateway in gateways]
        async with Load(urls, setup.clients).running() as load:
            return [
                await measure(
                    name,
                    load,
                    restart,
                    store_url=store,
                    gateways=gateways,
                    note=lambda: f"{deferred[0]:.0f} turns waited in memory",
                )
            ]


async def sqlite_locked(setup: Setup) -> Sequence[Result]:
    """Another process holds the write lock of the file."""

    async def lock(path: str, _: Gateway) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(setup.seconds)

    return await _sqlite(setup, f"SQLite is locked for {setup.seconds:g} s", lock)


async def disk_full(setup: Setup) -> Sequence[Result]:
    """No file of the gateway can grow any more: a limit of the kernel on the running process."""

    async def fill(_: str, gateway: Gateway) -> None:
        soft, hard = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, hard))
        await asyncio.sleep(setup.seconds)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (soft, hard))

    return await _sqlite(setup, f"the disk is full for {setup.seconds:g} s", fill)


async def _sqlite(
    setup: Setup, name: str, fault: Callable[[str, Gateway], Awaitable[None]]
) -> Sequence[Result]:
    store = sqlite_url(setup, "fault")
    async with (
        setup.gateways.running(
            upstream__url=setup.vllm, store__url=store, store__patience_seconds="1"
        ) as gateway,
        Load([gateway.url], setup.clients).running() as load,
    ):
        deferred = [0.0]

        async def watched() -> None:
            await fault(store.removeprefix("sqlite:///"), gateway)
            deferred[0] = await gateway.metric("entrogate_store_deferred")

        return [
            await measure(
                name,
                load,
                watched,
                store_url=store,
                gateways=[gateway],
                note=lambda: f"{deferred[0]:.0f} turns waited in memory",
            )
        ]

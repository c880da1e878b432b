"""All faults by name: of processes and the clock here, the others in the modules beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.chaos.client_faults import clients_read_slowly, clients_vanish
from tests.chaos.load import Load
from tests.chaos.measuring import Result, Scenario, Setup, measure, replicas, sqlite_url
from tests.chaos.store_faults import disk_full, postgres_restarted, postgres_stopped, sqlite_locked

COMPILER = shutil.which("cc") or shutil.which("gcc")


async def managed_vllm(setup: Setup) -> Sequence[Result]:
    """A vLLM that the gateway manages hangs, then is killed with all its parts."""
    store = sqlite_url(setup, "managed")
    async with setup.gateways.running("--model", "almanac", store__url=store) as gateway:

        async def hang() -> None:
            parts = gateway.descendants()
            send(parts, signal.SIGSTOP)
            await asyncio.sleep(setup.seconds)
            send(parts, signal.SIGCONT)

        async def kill() -> None:
            send(gateway.descendants(), signal.SIGKILL)

        where: Any = {"store_url": store, "gateways": [gateway]}
        async with Load([gateway.url], setup.clients).running() as load:
            hung = await measure(f"vLLM hangs for {setup.seconds:g} s", load, hang, **where)
        async with Load([gateway.url], setup.clients).running() as load:
            killed = await measure("vLLM is killed", load, kill, **where)
        return hung, killed


async def replica_killed(setup: Setup) -> Sequence[Result]:
    """One of two gateways on a Postgres is killed; the other one goes on with its conversations."""
    async with replicas(setup) as (store, gateways):

        async def kill() -> None:
            os.kill(gateways[0].pid, signal.SIGKILL)

        urls = [gateway.url for gateway in gateways]
        async with Load(urls, setup.clients).running() as load:
            return [
                await measure(
                    "one of two gateways is killed",
                    load,
                    kill,
                    store_url=store,
                    gateways=gateways[1:],
                )
            ]


async def replica_stopped(setup: Setup) -> Sequence[Result]:
    """One of two gateways is stopped in order (SIGTERM): what it has begun, it ends."""
    async with replicas(setup) as (store, gateways):

        async def stop() -> None:
            os.kill(gateways[0].pid, signal.SIGTERM)

        urls = [gateway.url for gateway in gateways]
        async with Load(urls, setup.clients).running() as load:
            return [
                await measure(
                    "one of two gateways is stopped",
                    load,
                    stop,
                    store_url=store,
                    gateways=gateways[1:],
                )
            ]


async def clock_jumps(setup: Setup) -> Sequence[Result]:
    """The gateway's wall clock jumps an hour back, then two hours ahead."""
    library = await asyncio.to_thread(_compiled_clock, setup.gateways.folder)
    store = sqlite_url(setup, "clock")
    clock = setup.gateways.folder / "clock"
    clock.write_text("0")
    setup.gateways.environment |= {
        "LD_PRELOAD": str(library),
        "CHAOS_CLOCK": str(clock),
    }
    try:
        async with (
            setup.gateways.running(upstream__url=setup.vllm, store__url=store) as gateway,
            Load([gateway.url], setup.clients).running() as load,
        ):

            async def jump() -> None:
                for offset in ("-3600", "3600"):
                    clock.with_suffix(".new").write_text(offset)
                    clock.with_suffix(".new").replace(clock)
                    await asyncio.sleep(setup.seconds / 2)

            where: Any = {"store_url": store, "gateways": [gateway]}
            result = await measure("the clock jumps by hours", load, jump, **where)
    finally:
        setup.gateways.environment.clear()
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        query = "SELECT max(created_at) - min(created_at) FROM turns"
        (span,) = database.execute(query).fetchone()
    assert span > 2 * 3500, "the clock did not jump"
    return [result]


SCENARIOS: dict[str, Scenario] = {
    each.__name__: each
    for each in (
        managed_vllm,
        replica_killed,
        replica_stopped,
        postgres_restarted,
        postgres_stopped,
        sqlite_locked,
        disk_full,
        clients_vanish,
        clients_read_slowly,
        clock_jumps,
    )
}


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _compiled_clock(folder: Path) -> Path:
    assert COMPILER is not None, "install a C compiler"
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = [COMPILER, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library

"""The faults: each is done to a running system under load, and what it cost is counted.

A request is *acknowledged* when its client has the last byte. It is *lost* when it was acknowledged
and is not in the store afterwards. *Recovered* is the time from the fault until every client has an
answer to a request that it sent later.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.load import MODEL, Load, Outcome
from tests.chaos.stack import Gateway, Gateways, stored_responses
from tests.integration.harness import CHAT
from tests.postgres import Server

COMPILER = shutil.which("cc") or shutil.which("gcc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a fault cost."""

    fault: str
    in_flight: int  # requests at the moment of the fault
    broken: int  # answers that ended early
    refused: int  # requests that got an error or no connection; they were sent again
    acknowledged: int  # in the whole run
    lost: int
    recovered_seconds: float
    statuses: tuple[int | None, ...]  # of the refused ones
    stray: int  # conversations that fell apart
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Setup:
    """What the faults are done to."""

    vllm: str  # URL of a vLLM that serves the bundled model
    postgres: Server
    gateways: Gateways
    clients: int = 8
    seconds: float = 5.0  # how long a fault lasts that can be long or short
    notes: list[str] = field(default_factory=list[str])


Fault = Callable[[], Awaitable[None]]
Scenario = Callable[[Setup], Coroutine[Any, Any, Sequence[Result]]]


async def measure(
    name: str,
    load: Load,
    fault: Fault,
    *,
    store_url: str,
    gateways: Sequence[Gateway],
    note: Callable[[], str] = str,
) -> Result:
    """Do the fault in the middle of the load; the load goes on for a while."""
    await load.until_answered(0.0)
    before = len(load.requests)
    moment = time.monotonic()
    in_flight = len(load.sent)
    await fault()
    recovered = await load.until_answered(moment)
    failed = [each for each in load.requests[before:] if each.outcome is not Outcome.ANSWERED]
    for gateway in gateways:
        await gateway.drained()
    acknowledged = {each.response_id for each in load.requests if each.response_id}
    stored = await asyncio.to_thread(stored_responses, store_url)
    refused = [each for each in failed if each.outcome is Outcome.REFUSED]
    return Result(
        fault=name,
        in_flight=in_flight,
        broken=len(failed) - len(refused),
        refused=len(refused),
        acknowledged=len(acknowledged),
        lost=len(acknowledged - stored),
        recovered_seconds=round(recovered, 1),
        statuses=tuple(sorted({each.status for each in refused}, key=str)),
        stray=load.stray,
        note=note(),
    )


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


@asynccontextmanager
async def replicas(
    setup: Setup, *, patience: float = 10.0
) -> AsyncIterator[tuple[str, list[Gateway]]]:
    """Two gateways on a new Postgres database: its URL, and them."""
    url = await asyncio.to_thread(setup.postgres.create_database)
    settings = {
        "upstream__url": setup.vllm,
        "store__url": url,
        "store__patience_seconds": str(patience),
    }
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(setup.gateways.running(**settings)) for _ in range(2)
        ]
        yield url, gateways
    await asyncio.to_thread(setup.postgres.drop_database, url)


def sqlite_url(setup: Setup, name: str) -> str:
    return f"sqlite:///{setup.gateways.folder / name}.db"


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

"""kill -9 of the gateway under load: no turn that a client has seen the end of is missing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from pathlib import Path

import httpx

from entrogate_lab.bench.processes import child, free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import CHAT, ask, calling

KILLS = 20 if os.environ.get("E2E_FULL") == "1" else 4
CLIENTS = 12


async def load(url: str, acknowledged: set[str], tag: str) -> None:
    """Post turns until the server is gone; remember those whose answer arrived whole."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:

        async def one(number: int) -> None:
            turn = 0
            while True:
                name = f"{tag}-{number}-{turn}"
                turn += 1
                body = ask(calling("Ada"), stream=turn % 2 == 0)
                headers = {"x-entrogate-trajectory-id": name}
                try:
                    response = await client.post(CHAT, json=body, headers=headers)
                except httpx.TransportError:
                    return
                if response.status_code == 200:
                    acknowledged.add(name)

        await asyncio.gather(*(one(i) for i in range(CLIENTS)))


async def test_nothing_acknowledged_is_lost(upstream: ScriptedUpstream, folder: Path) -> None:
    rng = random.Random(1)
    acknowledged: set[str] = set()
    environment = {
        "ENTROGATE_UPSTREAM__URL": upstream.url,
        "ENTROGATE_UPSTREAM__CAPTURE": "off",
        "ENTROGATE_STORE__URL": f"sqlite:///{folder / 'store.db'}",
    }
    for number in range(KILLS + 1):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        started = child(
            ("entrogate", "serve", "--port", str(port)),
            url=url,
            ready="/ready",
            log=folder / f"gateway-{number}.log",
            environment=environment,
        )
        process = await asyncio.to_thread(started.__enter__)
        try:
            if number == KILLS:  # the store opens clean after the last one
                async with httpx.AsyncClient(base_url=url) as client:
                    assert (await client.get("/v1/trajectories")).status_code == 200
                continue
            before = len(acknowledged)
            pressing = asyncio.create_task(load(url, acknowledged, f"k{number}"))
            while len(acknowledged) == before:
                await asyncio.sleep(0.01)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            await pressing
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
    store = sqlite3.connect(folder / "store.db")
    assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    stored = {row[0] for row in store.execute("SELECT trajectory_id FROM turns")}
    store.close()
    assert len(acknowledged) > KILLS
    assert acknowledged - stored == set()

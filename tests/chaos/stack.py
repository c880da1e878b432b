"""The parts of the system as processes: gateways, a vLLM that they manage, databases."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import select

from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from entrogate.store.schema import turns
from entrogate_lab.bench.processes import child, free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway in a process of its own."""

    url: str
    pid: int
    log: Path

    async def metric(self, name: str) -> float:
        """The sum of the samples of ``name``; 0 where there are none."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            text = (await client.get("/metrics")).text
        samples = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in samples)

    async def drained(self) -> None:
        """Wait until nothing waits in memory for its commit."""
        async with asyncio.timeout(60):
            while await self.metric("entrogate_store_queue_depth"):
                await asyncio.sleep(0.05)

    def descendants(self) -> list[int]:
        """Its children and theirs: a managed vLLM with all its parts."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            parent = int(rest.rpartition(") ")[2].split()[1])
            children.setdefault(parent, []).append(int(pid))
        found: list[int] = []
        open_ = [self.pid]
        while open_:
            below = children.get(open_.pop(), [])
            found += below
            open_ += below
        return found

    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Gateways:
    """Starts gateways and stops what is left of them."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    @asynccontextmanager
    async def running(self, *arguments: str, **settings: str) -> AsyncIterator[Gateway]:
        """``entrogate serve ARGUMENTS``; ``store__url="…"`` and the like are its settings."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = self.folder / f"gateway-{next(self._numbers)}.log"
        tree = {f"ENTROGATE_{name.upper()}": value for name, value in settings.items()}
        process = child(
            ("entrogate", "serve", "--port", str(port), *arguments),
            url=url,
            ready="/ready",
            log=log,
            environment={**self.environment, **tree},
            timeout_seconds=600,
        )
        started = await asyncio.to_thread(process.__enter__)
        try:
            yield Gateway(url=url, pid=started.pid, log=log)
        finally:
            await asyncio.to_thread(process.__exit__, None, None, None)


def stored_responses(store_url: str) -> set[str]:
    """The ids of all answers in a store."""
    database = Database(StoreSettings(url=store_url), migrating=False)
    try:
        return database.read(lambda c: set(c.execute(select(turns.c.response_id)).scalars()))
    finally:
        database.close()

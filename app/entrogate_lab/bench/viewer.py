"""How long the viewer's pages take, over a store of synthetic trajectories."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.processes import child, free_port
from entrogate_lab.bench.synthetic import add_long, fill

_TURNS, _TOKENS = 50, 20_000
_LISTS = {
    "list": "/ui/trajectories",
    "list, oldest first": "/ui/trajectories?sort=oldest",
    "list, of a tool": "/ui/trajectories?tool=search",
    "list, of a tool that nobody called": "/ui/trajectories?tool=none",
    "list, with an outcome": "/ui/trajectories?has_outcome=yes",
    "overview": "/ui",
}


def measure(
    trajectories: int, *, rounds: int, url: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Milliseconds of each page, as (lowest, median, highest); and the bytes of the long one."""
    with tempfile.TemporaryDirectory(prefix="entrogate-bench-") as name:
        store_url = url or f"sqlite:///{name}/store.db"
        began = time.perf_counter()
        long = asyncio.run(_filled(store_url, trajectories))
        say(f"stored {trajectories} trajectories in {time.perf_counter() - began:.0f} s")
        ports = free_port(), free_port()
        upstream, gateway = (f"http://127.0.0.1:{port}" for port in ports)
        with (
            child(
                ("entrogate_lab.bench.upstream", "--port", str(ports[0])),
                url=upstream,
                ready="/health",
                log=Path(name) / "upstream.log",
            ),
            child(
                ("entrogate", "serve", "--port", str(ports[1]), "--upstream", upstream),
                url=gateway,
                ready="/health",
                log=Path(name) / "gateway.log",
                environment={"ENTROGATE_STORE__URL": store_url},
            ),
        ):
            pages = {**_LISTS, f"{_TURNS} turns, {_TOKENS} tokens": f"/ui/trajectories/{long}"}
            result: dict[str, Any] = {"trajectories": trajectories, "milliseconds": {}}
            size = 0
            for page, path in pages.items():
                took = [_get(gateway + path) for _ in range(rounds + 1)]
                seconds = [each for each, _ in took[1:]]  # the first one warms up
                size = took[0][1]
                figures = min(seconds), statistics.median(seconds), max(seconds)
                result["milliseconds"][page] = [round(1000 * each, 1) for each in figures]
                say(f"{page}: {result['milliseconds'][page]}, first {1000 * took[0][0]:.0f}")
            result["long_page_bytes"] = size
            return result


def _get(url: str) -> tuple[float, int]:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=120) as answer:  # nosec B310  (ours)
        size = len(answer.read())
    return time.perf_counter() - began, size


async def _filled(url: str, trajectories: int) -> str:
    store = Store.open(StoreSettings(url=url))
    await store.start()
    try:
        await fill(store, trajectories)
        return await add_long(store, turns=_TURNS, tokens=_TOKENS)
    finally:
        await store.aclose()

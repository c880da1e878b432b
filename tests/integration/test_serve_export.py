"""The export beside the server: what was posted arrives once, whatever happens to its process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("pyarrow")

import pyarrow.parquet as pq

from entrogate.export.dataset import Dataset
from entrogate_lab.bench.processes import child, free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import CHAT, ask, calling, eventually

ROOT = Path(__file__).parents[2]
GUARD, EXPORT = "entrogate.upstream.child", "--every"


@asynccontextmanager
async def serving(
    upstream: str, folder: Path, *, to: Path
) -> AsyncGenerator[tuple[str, subprocess.Popen[bytes]]]:
    """A real `entrogate serve` that exports every second what has been quiet for one."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ("entrogate", "serve", "--port", str(port), "--upstream", upstream)
    started = child(
        (*arguments, "--export-to", str(to), "--export-every", "1"),
        url=url,
        ready="/ready",
        log=folder / "gateway.log",
        environment=environment(folder),
    )
    process = await asyncio.to_thread(started.__enter__)
    try:
        yield url, process
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)


def environment(folder: Path) -> dict[str, str]:
    return {
        "ENTROGATE_STORE__URL": f"sqlite:///{folder / 'store.db'}",
        "ENTROGATE_EXPORT__SETTLE_SECONDS": "1",
    }


def processes(to: Path, *, guard: bool) -> list[int]:
    """The guards, or the exports that they guard, of this dataset."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, NotADirectoryError):
            continue
        if str(to) in words and EXPORT in words and (GUARD in words) == guard:
            found.append(int(entry.name))
    return found


async def post(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(
        CHAT, json=ask(calling("Ada")), headers={"x-entrogate-trajectory-id": name}
    )
    assert answer.status_code == 200, answer.text
    said = await client.post("/v1/feedback", json={"trajectory_id": name, "score": 1.0})
    assert said.status_code == 200, said.text


def exported(to: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in to.glob("date=*/*.parquet"):
        found.update(pq.ParquetFile(part).read(["trajectory_id"])["trajectory_id"].to_pylist())
    return found


async def test_killed_again_and_again_nothing_is_lost_or_doubled(
    upstream: ScriptedUpstream, folder: Path
) -> None:
    to = folder / "data"
    names: set[str] = set()
    began = time.time()
    async with (
        serving(upstream.url, folder, to=to) as (url, _),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        for victims in (False, True, False):  # exports; their guard; an export
            await eventually(lambda: processes(to, guard=False))
            for _ in range(5):
                name = f"run-{len(names)}"
                await post(client, name)
                names.add(name)
            await eventually(lambda: len(exported(to)) > 0)
            before = processes(to, guard=False)
            for pid in processes(to, guard=victims):
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not set(before) & set(processes(to, guard=False)))  # noqa: B023
        await eventually(lambda: set(exported(to)) == names)
        text = (await client.get("/metrics")).text
        assert "entrogate_export_failures_total 3.0" in text
        (got_on,) = re.findall(
            r"^entrogate_export_progress_timestamp_seconds (.+)$", text, re.MULTILINE
        )
        assert began < float(got_on) <= time.time()
    assert set(exported(to).values()) == {1}
    assert processes(to, guard=False) == processes(to, guard=True) == [], "it ended in order"
    assert Dataset.reading(str(to)).exported() == names
    log = (folder / "gateway.log").read_text()
    assert log.count("export.ended code=137 again_in=1s") == 1
    assert "again_in=4s" in log


async def test_the_export_ends_with_a_server_that_is_killed(
    upstream: ScriptedUpstream, folder: Path
) -> None:
    to = folder / "data"
    async with serving(upstream.url, folder, to=to) as (_, process):
        await eventually(lambda: processes(to, guard=False))
        process.kill()
        process.wait()
        await eventually(lambda: not processes(to, guard=False))
    with Dataset.writing(str(to)):
        pass  # the lock has gone with it


@pytest.mark.parametrize("reason", ["target", "extra", "lock", "url"])
def test_what_cannot_work_is_refused_at_the_start(folder: Path, reason: str) -> None:
    to, path = str(folder / "data"), str(ROOT / "app")
    if reason == "target":
        (folder / "file").write_text("x")
        to, expected = str(folder / "file" / "data"), "cannot write to"
    elif reason == "extra":
        absent = folder / "path" / "pyarrow"
        absent.mkdir(parents=True)
        (absent / "__init__.py").write_text(
            "raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')"
        )
        path, expected = f"{absent.parent}{os.pathsep}{path}", "[export]'"
    elif reason == "url":
        to, expected = "nonsense://bucket", "cannot use nonsense://bucket"
    else:
        expected = "another export is writing"
    command = [sys.executable, "-m", "entrogate", "serve", "--upstream", "http://127.0.0.1:9"]

    def refused() -> str:
        done = subprocess.run(
            [*command, "--port", "0", "--export-to", to],
            env=os.environ | environment(folder) | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        return done.stderr

    if reason == "lock":
        with Dataset.writing(to):
            said = refused()
    else:
        said = refused()
    assert said.startswith("error: export.to: "), said
    assert said.count("\n") == 1
    assert expected in said

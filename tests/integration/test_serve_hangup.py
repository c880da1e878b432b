"""`entrogate serve` as a process that gets SIGHUP: it reads its policies again, and stays."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import (
    CHAT,
    ask,
    calling,
    events,
    message_of,
    message_of_stream,
)
from tests.integration.policies import DROPS, KEEPS, written

SECONDS = 60
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Makes its input, a terminal, that of the session, then runs the rest of its arguments."""


def command(upstream: ScriptedUpstream, folder: Path, port: int) -> list[str]:
    serve = [sys.executable, "-m", "entrogate", "serve", "--port", str(port)]
    serve += ["--upstream", upstream.url, "--store", f"sqlite:///{folder}/store.db"]
    return [*serve, "--policy", written(folder / "main.yaml", "one", **KEEPS)]


@contextmanager
def started(
    line: list[str],
    log: Path,
    *,
    terminal: int | None = None,
) -> Generator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as out,
        subprocess.Popen(line, stdin=terminal, stderr=out, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


async def ready(http: httpx.AsyncClient, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and (process is None or process.poll() is None):
        try:
            answer = await http.get("/ready")
        except httpx.TransportError:
            await asyncio.sleep(0.05)
        else:
            return answer.json()
    raise AssertionError("the gateway is not there")


async def until_policy(http: httpx.AsyncClient, name: str) -> None:
    async with asyncio.timeout(SECONDS):
        while (await ready(http, None))["policy"]["name"] != name:
            await asyncio.sleep(0.02)


async def test_sighup_reloads_and_breaks_no_stream(
    upstream: ScriptedUpstream, folder: Path
) -> None:
    port, log = free_port(), folder / "gateway.log"
    words = " ".join(f"word{n}" for n in range(400))
    slow = ask({"content": words, "delay": 0.01}, tools=False) | {"stream": True}
    with started(command(upstream, folder, port), log) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            await ready(http, process)
            stream = asyncio.create_task(http.post(CHAT, json=slow))
            for name in ("two", "three"):
                written(folder / "main.yaml", name, **DROPS)
                process.send_signal(signal.SIGHUP)
                await until_policy(http, name)
            (folder / "main.yaml").write_text("schema_version: 1\nname: [\n")
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(SECONDS):
                while "policy_problem" not in (report := await ready(http, process)):
                    await asyncio.sleep(0.02)
            assert report["policy"]["name"] == "three"
            answer = await stream
            said = "".join(
                part["delta"].get("content") or ""
                for event in events(answer.content)
                for part in event["choices"]
            )
            assert said == words
        process.terminate()
        assert process.wait(SECONDS) == 0
    assert "main.yaml:3:1: " in log.read_text()


async def test_no_request_is_lost_while_policies_are_reloaded(
    upstream: ScriptedUpstream, folder: Path
) -> None:
    """Agents keep asking, on kept connections and on new ones, plain and streamed."""
    port, log, answers = free_port(), folder / "gateway.log", Counter[str]()
    over = asyncio.Event()

    async def agent(http: httpx.AsyncClient, number: int) -> None:
        body = ask(calling("Ada", masked="It is Ada."), stream=number % 2 == 0)
        own = {"Connection": "close"} if number % 4 < 2 else {}
        while not over.is_set():
            answer = await http.post(CHAT, json=body, headers=own)
            assert answer.status_code == 200, answer.text
            whole = message_of_stream(answer.content) if body["stream"] else message_of(answer)
            called = "tool_calls" in whole
            assert called or whole["content"].strip() == "It is Ada."
            answers["called" if called else "suppressed"] += 1

    with started(command(upstream, folder, port), log) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            await ready(http, process)
            async with asyncio.TaskGroup() as agents:
                for number in range(8):
                    agents.create_task(agent(http, number))
                for number in range(12):
                    content = DROPS if number % 2 == 0 else KEEPS
                    written(folder / "main.yaml", f"p{number}", **content)
                    process.send_signal(signal.SIGHUP)
                    if number % 3 == 0:  # some overtake the reload before them
                        await until_policy(http, f"p{number}")
                    (folder / "main.yaml").unlink()
                    process.send_signal(signal.SIGHUP)
                written(folder / "main.yaml", "last", **KEEPS)
                process.send_signal(signal.SIGHUP)
                await until_policy(http, "last")
                over.set()
        process.terminate()
        assert await asyncio.to_thread(process.wait, SECONDS) == 0
    assert min(answers["called"], answers["suppressed"]) > 0
    with closing(sqlite3.connect(folder / "store.db")) as store:
        assert store.execute("select count(*) from turns").fetchone() == (answers.total(),)
        decided = store.execute("select count(distinct policy_version) from trajectories")
        assert decided.fetchone()[0] > 1
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("nohup", [False, True])
async def test_a_terminal_that_goes_away(
    upstream: ScriptedUpstream, folder: Path, nohup: bool
) -> None:
    """The server ends with it, unless `nohup` started it."""
    port, log = free_port(), folder / "gateway.log"
    master, slave = os.openpty()

    line = [sys.executable, "-c", IN_TERMINAL, "SIG_IGN" if nohup else "SIG_DFL"]
    line += command(upstream, folder, port)
    with started(line, log, terminal=slave) as process:
        os.close(slave)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await ready(http, process)
            written(folder / "main.yaml", "two", **KEEPS)
            process.send_signal(signal.SIGHUP)  # while the terminal is there: a reload
            await until_policy(http, "two")
            written(folder / "main.yaml", "three", **KEEPS)
            os.close(master)
            if nohup:
                await until_policy(http, "three")
            else:
                assert await asyncio.to_thread(process.wait, SECONDS) == 0

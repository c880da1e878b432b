"""The export beside the server: a child process that adds to a dataset what has settled.

It is `entrogate export --every` in a process of its own, so its work never holds up a request and
a fault in it never ends the server. What a killed export leaves behind, the next one clears up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from entrogate.errors import ConfigError
from entrogate.settings import Settings

_log = logging.getLogger("entrogate.serve")

_CHECK_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 60.0
_STABLE_SECONDS = 600.0  # it ran for so long, and earlier failures are forgiven


class PeriodicExport:
    """Runs while its block does; ``on_failure`` is called each time the process has died,
    ``on_progress`` when it begins and when it says what it wrote.

    It is restarted after 1, 2, 4 … seconds, 60 at most, without end: the store keeps everything
    meanwhile. The process ends with this one, however this one ends.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_failure: Callable[[], None],
        on_progress: Callable[[], None],
        backoff_seconds: float = 1.0,
    ) -> None:
        self._command = [*_export(settings), "--every", str(settings.export.every_seconds)]
        self._environment = _environment(settings)
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._backoff_seconds = backoff_seconds
        self._supervisor: asyncio.Task[None] | None = None
        self._last_line = ""

    async def __aenter__(self) -> Self:
        self._on_progress()
        self._supervisor = asyncio.create_task(self._supervise(), name="export")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    async def _supervise(self) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            started = clock()
            try:
                code = await self._run()
            except OSError as error:
                code, self._last_line = -1, str(error)
            failures = 1 if clock() - started > _STABLE_SECONDS else failures + 1
            delay = min(self._backoff_seconds * 2 ** (failures - 1), _LONGEST_BACKOFF_SECONDS)
            _log.error(
                "export.ended code=%d again_in=%gs last line: %s", code, delay, self._last_line
            )
            self._on_failure()
            await asyncio.sleep(delay)

    async def _run(self) -> int:
        """Run the process until it ends; its exit code."""
        guard = [sys.executable, "-m", "entrogate.upstream.child", str(_GRACE_SECONDS)]
        process = await asyncio.create_subprocess_exec(
            *guard,
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stderr is not None
        listening = asyncio.create_task(self._listen(process.stderr))
        try:
            return await process.wait()
        finally:
            await _end(process)
            await listening

    async def _listen(self, said: asyncio.StreamReader) -> None:
        self._last_line = ""
        while True:
            try:
                line = await said.readline()
            except ValueError:  # a line beyond all measure; the reader has dropped it
                continue
            if not line:
                return
            self._last_line = line.decode(errors="replace").rstrip()
            _log.info("export.said %s", self._last_line)
            if self._last_line.startswith("export: "):
                self._on_progress()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and everything in its group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    # Also when it has died: what it guarded may have outlived it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def check_export(settings: Settings) -> None:
    """Raise ConfigError, in one line, where an export could not work: no extra, a bad target.

    Blocks for as long as a process needs to look, a minute at most.
    """
    target = settings.export.to
    try:
        done = subprocess.run(
            [*_export(settings), "--check"],
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"export.to: {target} did not answer within {_CHECK_SECONDS:g} s"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"export.to: {said[-1].removeprefix('error: ').removeprefix('Error: ')}")


def _export(settings: Settings) -> list[str]:
    assert settings.export.to is not None
    command = [sys.executable, "-m", "entrogate", "export", "--to", settings.export.to]
    command += ["--settle", str(settings.export.settle_seconds)]
    model = settings.managed.model
    if model is not None and (Path(model) / "tokenizer.json").is_file():
        command += ["--model-folder", model]
    return command


def _environment(settings: Settings) -> dict[str, str]:
    """The store's URL goes this way: a command line is for everybody to read."""
    return os.environ | {"ENTROGATE_STORE__URL": settings.store.url}

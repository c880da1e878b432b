"""The export beside the server: a child process that adds to a dataset what has settled.

It is `entrogate export --every` in a process of its own, so its work never holds up a request and
a fault in it never ends the server. What a killed export leaves behind, the next one clears up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from entrogate.errors import ConfigError
from entrogate.settings import Settings
from entrogate.upstream.supervised import Backoff, GuardedProcess

_log = logging.getLogger("entrogate.serve")

_CHECK_SECONDS = 60.0
_GRACE_SECONDS = 5.0


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
        backoff = Backoff(self._backoff_seconds)
        while True:
            started = clock()
            self._last_line = ""
            try:
                process = await GuardedProcess.start(
                    self._command,
                    environment=self._environment,
                    grace_seconds=_GRACE_SECONDS,
                )
                code = await process.follow(self._hear)
            except OSError as error:
                code, self._last_line = -1, str(error)
            delay = backoff.failed(clock() - started)
            _log.error(
                "export.ended code=%d again_in=%gs last line: %s", code, delay, self._last_line
            )
            self._on_failure()
            await asyncio.sleep(delay)

    def _hear(self, line: str) -> None:
        self._last_line = line
        _log.info("export.said %s", line)
        if line.startswith("export: "):
            self._on_progress()


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

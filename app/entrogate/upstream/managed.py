"""A vLLM server as a child process: started, watched, restarted after a crash, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Self

import httpx

from entrogate.engine.environment import ADDRESS_VARIABLE, SECRET_VARIABLE
from entrogate.errors import ConfigError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from entrogate.settings import ManagedSettings
from entrogate.upstream import model_folder, vllm_command
from entrogate.upstream.parsers import Parsers, choose_parsers
from entrogate.upstream.supervised import Backoff, GuardedProcess, exit_text

_log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
"""Called about once a second while the server starts: elapsed seconds, its last log line."""

_POLL_SECONDS = 0.25
_QUOTED_LINES = 15


class ManagedState(StrEnum):
    """What `/ready` is told."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class ManagedVllm:
    """One vLLM server on the loopback interface, on the same port through all its restarts.

    ``command`` makes the server's command line from a port; without it vLLM is looked up in this
    environment (ConfigError when it is not installed, the model is unusable or the port is taken)
    and sends its own spans to ``traces_url``.
    The server writes to ``log_file`` and is bound to this process: it ends when we do, however we
    end. It runs in a session of its own, so Ctrl-C reaches only us and we stop it in order.
    """

    def __init__(
        self,
        settings: ManagedSettings,
        *,
        command: Callable[[int], list[str]] | None = None,
        traces_url: str | None = None,
        backoff_seconds: float = 1.0,
        stop_grace_seconds: float = 20.0,
    ) -> None:
        if settings.model is None:
            raise ConfigError("no model is named for the managed vLLM (--model)")
        self._settings = settings
        self._model = settings.model
        self._backoff_seconds = backoff_seconds
        self._stop_grace_seconds = stop_grace_seconds
        self._environment = dict(os.environ)
        self.parsers: Parsers | None = None  # what vLLM reads the model's answers with
        # Only we and our vLLM may read what is captured: it holds the ids of prompts.
        self._private = Path(tempfile.gettempdir()) / f"entrogate-{secrets.token_hex(8)}"
        self.capture_address = f"ipc://{self._private}/captures"
        if command is None:
            command = self._vllm(traces_url)
        self.port = _reserve(settings.port)
        self._command = command(self.port)
        self.log_file = settings.log_file or _default_log_file(self.port)
        self.state = ManagedState.STOPPED
        self.restarts = 0
        self._process: GuardedProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def vocab_size(self) -> int | None:
        """Width of the model's logits, None when its config.json is not at hand."""
        return model_folder.vocabulary_size(self._model)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, progress: Progress | None = None) -> None:
        """Start the server and return when it answers; then watch it.

        Raises UpstreamUnavailable with the last log lines when it exits early, UpstreamTimeout
        after ``startup_timeout_seconds``. Either way, and when cancelled, nothing is left running.
        """
        self.state = ManagedState.STARTING
        try:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            self.log_file.write_bytes(b"")
        except OSError as error:
            raise ConfigError(f"cannot write vLLM's log {self.log_file}: {error}") from error
        try:
            self._private.mkdir(mode=0o700, exist_ok=True)
            process = await self._launch()
            await self._until_healthy(process, progress)
        except BaseException:
            await self._end()
            shutil.rmtree(self._private, ignore_errors=True)
            self.state = ManagedState.FAILED
            raise
        self.state = ManagedState.READY
        self._supervisor = asyncio.create_task(self._supervise(process), name="managed-vllm")

    async def stop(self) -> None:
        """Ask the server to end, and after the grace period make it. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._end()
        shutil.rmtree(self._private, ignore_errors=True)
        self.state = ManagedState.STOPPED

    def last_log_lines(self, count: int = _QUOTED_LINES) -> list[str]:
        """The last lines that the server wrote, without blank ones."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]

    def _vllm(self, traces_url: str | None) -> Callable[[int], list[str]]:
        vllm_command.check_model(self._model)
        build = vllm_command.installed_vllm()
        parsers = self.parsers = choose_parsers(self._settings)
        self._environment = vllm_command.environment(
            os.environ, model=self._model, cpu=build.cpu, lora=self._settings.lora
        )
        self._environment[ADDRESS_VARIABLE] = self.capture_address
        self._environment.pop(SECRET_VARIABLE, None)  # nobody else can reach that folder
        return lambda port: vllm_command.command_line(
            self._settings, parsers=parsers, port=port, cpu=build.cpu, traces_url=traces_url
        )

    async def _launch(self) -> GuardedProcess:
        with self.log_file.open("ab") as log:
            self._process = await GuardedProcess.start(
                self._command,
                environment=self._environment,
                grace_seconds=self._stop_grace_seconds,
                log=log,
            )
        return self._process

    async def _until_healthy(self, process: GuardedProcess, progress: Progress | None) -> None:
        clock = asyncio.get_running_loop().time
        started = told = clock()
        limit = self._settings.startup_timeout_seconds
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            while True:
                if process.exit_code is not None:
                    raise UpstreamUnavailable(self._quote(exit_text(process.exit_code)))
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        return
                now = clock()
                if now - started > limit:
                    raise UpstreamTimeout(self._quote(f"was not ready after {limit:g} s"))
                if progress is not None and now - told >= 1.0:
                    told = now
                    progress(now - started, "".join(self.last_log_lines(1)))
                await asyncio.sleep(_POLL_SECONDS)

    async def _supervise(self, process: GuardedProcess) -> None:
        """Restart the server each time it ends, later each time, until the limit is reached."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff(self._backoff_seconds)
        while True:
            ready_since = clock()
            code = await process.wait()
            await self._end()
            delay = backoff.failed(clock() - ready_since)
            _log.error("vllm.exited %s", self._quote(exit_text(code)))
            while True:
                if backoff.failures > self._settings.restart_limit:
                    self.state = ManagedState.FAILED
                    _log.error("vllm.given_up restarts=%d", self.restarts)
                    return
                self.state = ManagedState.RESTARTING
                await asyncio.sleep(delay)
                self.restarts += 1
                try:
                    process = await self._launch()
                    await self._until_healthy(process, None)
                    break
                except (UpstreamError, OSError) as error:
                    _log.error("vllm.restart_failed %s", error)
                    await self._end()
                    delay = backoff.failed()
            self.state = ManagedState.READY
            _log.warning("vllm.restarted restarts=%d", self.restarts)

    async def _end(self) -> None:
        """End the current process and everything in its group."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    def _quote(self, what: str) -> str:
        lines = "\n  ".join(self.last_log_lines())
        quoted = f"; its last lines:\n  {lines}" if lines else ""
        return f"the managed vLLM {what} (log: {self.log_file}){quoted}"


def _reserve(port: int | None) -> int:
    """A port of the loopback interface that is free now; ConfigError when ``port`` is not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise ConfigError(
                f"port {port} for the managed vLLM is taken ({error.strerror}): name another one"
                " (ENTROGATE_MANAGED__PORT), or none to have a free one chosen"
            ) from error
        return int(probe.getsockname()[1])


def _default_log_file(port: int) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "entrogate" / f"vllm-{port}.log"

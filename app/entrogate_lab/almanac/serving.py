"""`entrogate serve` as a child process, for the length of a demo."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx

from entrogate.errors import UpstreamTimeout, UpstreamUnavailable

READY_SECONDS = 1800.0
"""How long vLLM may take to start where `LIMIT_VARIABLE` does not say otherwise."""

LIMIT_VARIABLE = "ENTROGATE_MANAGED__STARTUP_TIMEOUT_SECONDS"
STORE = "trajectories.db"
_STOP_SECONDS = 60.0
_GATEWAY_SECONDS = 120.0  # beside vLLM: so that it is the gateway that says what vLLM did not do
_PROGRESS = re.compile(r"^\d+ s(\s+|$)")  # of the gateway's lines while vLLM starts
_QUOTED_LINES = 12
_MOST_QUOTED = 200

Waiting = Callable[[float, str], None]
"""Called about once a second until the gateway is ready: elapsed seconds, and its last log line
without a clock of its own."""


@contextmanager
def serving(
    model: Path,
    *,
    name: str,
    policy: str,
    folder: Path,
    waiting: Waiting,
    options: Sequence[str] = (),
    fresh: bool = True,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Generator[str]:
    """Serve ``model`` through a gateway under ``policy``; yields its URL without ``/v1``.

    The logs of gateway and vLLM and the store go to ``folder``; ``fresh`` begins a new store.
    ``options`` are further ones of `entrogate serve`, ``settings`` further variables. Clients may
    choose the mode. Both processes end with the block, and with this process however it ends.
    """
    port = _free_port()
    store = folder / STORE
    for old in folder.glob(f"{STORE}*") if fresh else ():
        old.unlink()
    command = [sys.executable, "-m", "entrogate.upstream.child", str(_STOP_SECONDS)]
    command += [sys.executable, "-m", "entrogate", "serve", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", name, "--policy", policy]
    command += ["--allow-mode-header", "--store", f"sqlite:///{store.resolve()}", *options]
    environment: dict[str, str] = {LIMIT_VARIABLE: f"{READY_SECONDS:g}", **os.environ, **settings}
    environment["ENTROGATE_MANAGED__LOG_FILE"] = str((folder / "vllm.log").resolve())
    log = folder / "gateway.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        limit = READY_SECONDS
        with contextlib.suppress(ValueError):  # the gateway says so
            limit = float(environment[LIMIT_VARIABLE])
        _until_ready(process, url, log, waiting, limit=limit + _GATEWAY_SECONDS)
        yield url
    finally:
        _end(process)


def _until_ready(
    process: subprocess.Popen[bytes], url: str, log: Path, waiting: Waiting, *, limit: float
) -> None:
    started = time.monotonic()
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        while True:
            code = process.poll()
            if code is not None:
                raise UpstreamUnavailable(_quote(log, f"ended with exit code {code}"))
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/ready").status_code == 200:
                    return
            elapsed = time.monotonic() - started
            if elapsed > limit:
                raise UpstreamTimeout(_quote(log, f"was not ready after {limit:g} s"))
            waiting(elapsed, _PROGRESS.sub("", "".join(_last_lines(log, 1))))
            time.sleep(1.0)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _quote(log: Path, what: str) -> str:
    """What happened, and what was logged but for the lines that only say that vLLM starts."""
    last = _last_lines(log, 1)
    if last and _PROGRESS.match(last[0]):
        vllm = log.parent / "vllm.log"
        said = "".join(_last_lines(vllm, 1))[:_MOST_QUOTED] if vllm.is_file() else ""
        return (
            f"the gateway {what}: vLLM was still starting (log: {vllm};"
            f" its last line: {said or 'none'}); {LIMIT_VARIABLE} is how long it may take"
        )
    told = [line for line in _last_lines(log, None) if not _PROGRESS.match(line)]
    lines = "\n  ".join(told[-_QUOTED_LINES:])
    return f"the gateway {what} (log: {log}); its last lines:\n  {lines}"


def _last_lines(log: Path, count: int | None) -> list[str]:
    """The last lines that are not empty; None: all of them."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-(count or 0) :]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""`entrogate serve` as a child process, for the length of a demo."""

import contextlib
import os
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

READY_SECONDS = 900.0
STORE = "trajectories.db"
_STOP_SECONDS = 60.0
_QUOTED_LINES = 12

Waiting = Callable[[float, str], None]
"""Called about once a second until the gateway is ready: elapsed seconds, its last log line."""


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
    environment = os.environ | {"ENTROGATE_MANAGED__LOG_FILE": str((folder / "vllm.log").resolve())}
    environment |= settings
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
        _until_ready(process, url, log, waiting)
        yield url
    finally:
        _end(process)


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path, waiting: Waiting) -> None:
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
            if elapsed > READY_SECONDS:
                raise UpstreamTimeout(_quote(log, f"was not ready after {READY_SECONDS:g} s"))
            waiting(elapsed, "".join(_last_lines(log, 1)))
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
    lines = "\n  ".join(_last_lines(log, _QUOTED_LINES))
    return f"the gateway {what} (log: {log}); its last lines:\n  {lines}"


def _last_lines(log: Path, count: int) -> list[str]:
    text = log.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

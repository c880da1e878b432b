"""The processes of a benchmark: started, waited for, their CPU time read, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from entrogate.errors import EntrogateError

_CPU_CLOCK_OF_PROCESS = 2


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child(
    arguments: Sequence[str],
    *,
    url: str,
    ready: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 60.0,
) -> Generator[subprocess.Popen[bytes]]:
    """Run ``python -m ARGUMENTS``; the block begins when ``url + ready`` answers 200.

    Raises EntrogateError, with the end of the log, when the process ends or the time is over.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        _wait_ready(process, url + ready, log, timeout_seconds)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(pid: int) -> float | None:
    """User and system time of all threads of a process; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # The clock id that clock_getcpuclockid(3) gives for a process.
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)
    except OSError:
        return None


def _wait_ready(
    process: subprocess.Popen[bytes], url: str, log: Path, timeout_seconds: float
) -> None:
    until = time.monotonic() + timeout_seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise EntrogateError(f"a process of the benchmark ended:\n{_end_of(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # nosec B310  (ours)
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise EntrogateError(f"{url} did not answer in {timeout_seconds:g} s:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]

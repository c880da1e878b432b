"""A guard around one server process: it never outlives the process that started it.

Run as ``python -m entrogate.upstream.child GRACE_SECONDS COMMAND…`` in a process group of its own,
with the read end of a pipe as stdin. The server ends when it wants to, when the guard gets SIGTERM,
or when the pipe closes, which the kernel does even for a starter that was killed with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType


def guard(command: Sequence[str], *, grace_seconds: float) -> int:
    """Run ``command`` until it ends; its exit code, or 128 + the signal that ended it."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        server.terminate()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    starter_gone = threading.Event()
    threading.Thread(
        target=_watch_starter, args=(server, starter_gone, grace_seconds), daemon=True
    ).start()
    code = server.wait()
    if starter_gone.is_set():
        _kill_group()
    return code if code >= 0 else 128 - code


def _watch_starter(
    server: subprocess.Popen[bytes], starter_gone: threading.Event, grace_seconds: float
) -> None:
    while os.read(0, 1024):
        pass
    starter_gone.set()
    server.terminate()
    time.sleep(grace_seconds)
    _kill_group()


def _kill_group() -> None:
    """End whatever the server left behind; this guard belongs to the group too."""
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[2:], grace_seconds=float(sys.argv[1])))

"""SIGHUP: reload the policies, or end with the terminal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


def reloads_on_hangup(reload: Callable[[], None]) -> None:
    """Make SIGHUP call ``reload`` in the running loop.

    If the terminal that the process was started in is gone, SIGHUP acts like SIGTERM, so that no
    orphaned server keeps running. A process started with `nohup` keeps running.
    """
    ends_with_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and _has_terminal()

    def on_hangup() -> None:
        if ends_with_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


def _has_terminal() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    os.close(terminal)
    return True

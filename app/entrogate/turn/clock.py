"""The time of day, for what must not look younger than it is."""

from __future__ import annotations

import time
from collections.abc import Callable


def _running() -> float:
    """Seconds that no setting of the clock changes; time asleep counts where the system says it."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class Clock:
    """Seconds since the epoch that never go back, and run on at their pace.

    Where the system's clock is set back, this one stays ahead of it until the process ends: what
    it has measured before is as old as it was.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, running: Callable[[], float] = _running
    ) -> None:
        self._wall = wall
        self._running = running
        self._ahead = wall() - running()  # of the running clock

    def now(self) -> float:
        """Seconds since the epoch, by the latest setting of the system's clock so far."""
        wall = self._wall()  # first: a pause between the two must not put this clock ahead
        running = self._running()
        self._ahead = max(self._ahead, wall - running)
        return running + self._ahead

"""How long nothing has come to a trajectory, whatever the clock does.

The age of a commit by the clock is wrong when the clock was set between. What an export itself saw
is not: a number that was there when it looked an hour ago, by a timer that nobody sets, is at least
an hour old, and one that was not is younger than that.
"""

from __future__ import annotations

import math
import time
import uuid
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The highest number that was there at a moment, in seconds since the machine started."""

    sequence: int
    uptime: float


class Sightings:
    """What was seen when, in this run of the machine; the oldest first."""

    def __init__(self, seen: list[Sighting] | None = None) -> None:
        self.seen = [] if seen is None else seen

    def add(self, sequence: int, uptime: float) -> None:
        """Note the highest number now. One that is lower than before is of another store."""
        if self.seen and (sequence < self.seen[-1].sequence or uptime < self.seen[-1].uptime):
            self.seen.clear()
        new = Sighting(sequence=sequence, uptime=uptime)
        if len(self.seen) > 1 and self.seen[-2].sequence == sequence:
            self.seen[-1] = new  # the first and the last sighting of a number say all
        else:
            self.seen.append(new)
        if len(self.seen) > _MOST:
            del self.seen[1:-1:2]

    def age(self, sequence: int, by_clock: float, uptime: float) -> float:
        """Seconds since this number was given: what the clock says, within what was seen."""
        there = bisect_left(self.seen, sequence, key=lambda each: each.sequence)
        least, most = 0.0, math.inf
        if there < len(self.seen):
            least = uptime - self.seen[there].uptime
        if there > 0:
            most = uptime - self.seen[there - 1].uptime
        return min(max(by_clock, least), most)


def uptime() -> float:
    """Seconds of a timer that runs on while the machine sleeps, and that nobody sets."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def boot_id() -> str:
    """Names this run of the machine: `uptime` counts from its beginning."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # no Linux: what this process saw helps this process alone
        return f"process {uuid.uuid4()}"

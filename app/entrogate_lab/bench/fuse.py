"""How often a fuse blows although nothing is wrong, and how soon it blows when something is.

Streams of judged audits are drawn; the bounds are those of the gateway (`risk.sequence.watch`),
computed for all streams at once by the fewest losses that raise the alarm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrogate.risk.ltt import upper_bound
from entrogate.risk.sequence import STRETCH, exceeds

BEFORE = 0.4  # of the limit: the loss rate while all is well
_CONFIDENCE = 0.999  # of the bound on the probability of a false alarm

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]


def fewest_losses(length: int, limit: float, delta: float) -> Counts:
    """After 1 … ``length`` audits, the fewest losses that refute a rate of at most ``limit``."""
    fewest, found = 0, list[int]()
    for n in range(1, length + 1):  # it never falls as n grows: every gain is evidence against
        while fewest <= n and not exceeds(fewest, n, limit, delta):
            fewest += 1
        found.append(fewest)
    return np.array(found)


def alarms(losses: Flags, limit: float, delta: float) -> Counts:
    """When the fuse of each stream (a row) blows, counted in audits; 0 where it never does."""
    sums = losses.cumsum(axis=1)
    length = losses.shape[1]
    above = sums >= fewest_losses(length, limit, delta / 2)
    for i in range(1, (length - 1) // STRETCH + 1):
        start = STRETCH * i
        since = sums[:, start:] - sums[:, start - 1 : start]
        share = delta / 2 / (i * (i + 1))
        above[:, start:] |= since >= fewest_losses(length - start, limit, share)
    return np.where(above.any(axis=1), above.argmax(axis=1) + 1, 0)


def measure(
    *,
    streams: int,
    length: int,
    limit: float,
    delta: float,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """False alarms of streams without a shift, and delays of streams with one."""
    draw = np.random.default_rng(seed)

    def blown(rates: NDArray[np.float64]) -> Counts:
        return alarms(draw.random((streams, length)) < rates, limit, delta)

    null = {
        "at the limit": np.full(length, limit),
        "below it": np.full(length, 0.8 * limit),
        "coming and going": np.where(np.sin(np.arange(length) / 40) > 0, limit, limit / 5),
    }
    asked = {"streams": streams, "length": length, "max_loss": limit, "delta": delta, "seed": seed}
    false_alarms = [_false_alarms(name, blown(rates), say) for name, rates in null.items()]
    delays: list[dict[str, Any]] = []
    for good, times in ((0, 3.0), (100, 3.0), (1000, 3.0), (100, 5.0), (100, 2.0)):
        rates = np.full(length, min(0.9, times * limit))
        rates[:good] = BEFORE * limit
        delays.append(_delay(good, float(rates[-1]), blown(rates), length, say))
    return {**asked, "false_alarms": false_alarms, "delays": delays}


def _false_alarms(name: str, when: Counts, say: Callable[[str], None]) -> dict[str, Any]:
    count, streams = int((when > 0).sum()), len(when)
    highest = upper_bound(count, streams, 1 - _CONFIDENCE)
    say(f"{name}: {count} of {streams} streams, with 99.9 % confidence below {highest:.1%}")
    return {"rates": name, "alarms": count, "upper": highest}


def _delay(
    good: int, rate: float, when: Counts, length: int, say: Callable[[str], None]
) -> dict[str, Any]:
    late = np.where(when == 0, length, when - good)[(when == 0) | (when > good)]
    median, nine_tenths = (float(np.quantile(late, q)) for q in (0.5, 0.9))
    missed = int((when == 0).sum())
    say(
        f"after {good} good audits {rate:.0%} are lost: median {median:.0f},"
        f" 90th percentile {nine_tenths:.0f}, not found in {missed} streams"
    )
    return {
        "good": good,
        "rate": rate,
        "median": median,
        "nine_tenths": nine_tenths,
        "missed": missed,
        "false": int(((when > 0) & (when <= good)).sum()),
    }

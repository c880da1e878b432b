"""Does an agent go in a circle? Calls A B A B …, with the same results each time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

MIN_PERIOD, MAX_PERIOD = 2, 8
WINDOW = 512  # so many of the latest calls are looked at


def circle_rounds(
    past: Sequence[tuple[Hashable, Hashable | None]], proposed: Sequence[Hashable]
) -> tuple[int, ...]:
    """For each proposed call, how many complete rounds of one circle end with the last of them.

    ``past`` are the earlier calls in order, each with its result (None: unknown), and ``proposed``
    the calls of this turn, of which no result is known yet. A circle has 2 to 8 calls, not all of
    them the same, and repeats at least once: 0 for a call that is in none. A round counts where
    its calls are those of the round before and their results as well; a proposed call repeats one
    whose result is known. At most the latest 512 calls are looked at, each a bounded number of
    times.
    """
    past = past[-WINDOW:]
    calls = [*(call for call, _ in past), *proposed]
    results = [result for _, result in past]
    best = [0] * len(proposed)
    for period in range(MIN_PERIOD, MAX_PERIOD + 1):
        rounds = _rounds(calls, results, period)
        if rounds < 2 or len(set(calls[-period:])) == 1:
            continue
        first = max(len(calls) - rounds * period - len(past), 0)
        for position in range(first, len(proposed)):
            best[position] = max(best[position], rounds)
    return tuple(best)


def _rounds(calls: list[Hashable], results: list[Hashable | None], period: int) -> int:
    """How many rounds of ``period`` calls end with the last call; 1 for what does not repeat."""
    repeated = 0
    for position in range(len(calls) - 1, period - 1, -1):
        before = position - period
        if calls[position] != calls[before] or before >= len(results) or results[before] is None:
            break
        if position < len(results) and results[position] != results[before]:
            break
        repeated += 1
    return repeated // period + 1

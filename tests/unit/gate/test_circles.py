"""Circles of calls, against a brute force over every period and every number of rounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entrogate.gate.circles import MAX_PERIOD, WINDOW, circle_rounds

Past = list[tuple[str, str | None]]


def past(calls: str, results: str | None = None) -> Past:
    """One call for each letter, each with its own result or that of ``results`` (-: none)."""
    found = calls.lower() if results is None else results
    return [(c, None if r == "-" else r) for c, r in zip(calls, found, strict=True)]


def brute_force(before: Past, proposed: Sequence[str]) -> tuple[int, ...]:
    """Cuts the end of the calls into rounds and compares each with the next, call for call."""
    steps = [*((c, r, True) for c, r in before), *((c, None, False) for c in proposed)]
    best = [0] * len(proposed)
    for period in range(2, MAX_PERIOD + 1):
        for rounds in range(2, len(steps) // period + 1):
            start = len(steps) - rounds * period
            cut = [steps[start + i * period : start + (i + 1) * period] for i in range(rounds)]
            if len({call for call, _, _ in cut[-1]}) < 2:
                continue
            if not all(
                call == again and result is not None and (result == now or not done)
                for one, two in itertools.pairwise(cut)
                for (call, result, _), (again, now, done) in zip(one, two, strict=True)
            ):
                continue
            for position in range(len(proposed)):
                if len(before) + position >= start:
                    best[position] = max(best[position], rounds)
    return tuple(best)


@pytest.mark.parametrize(
    ("calls", "results", "proposed", "rounds"),
    [
        ("ABAB", None, "A", [2]),
        ("ABABA", None, "B", [3]),
        ("ABABABABA", None, "B", [5]),
        ("XABABA", None, "B", [3]),
        ("ABCABCAB", None, "C", [3]),
        ("ABCABCABC", None, "A", [3]),
        ("ABABA", "12121", "B", [3]),
        ("ABABA", "12123", "B", [0]),  # A answered something new in the last round
        ("ABABA", "12321", "B", [0]),
        ("ABABABA", "1299121", "B", [2]),
        ("ABABABABA", "999912121", "B", [3]),
        ("AAAAAAA", None, "A", [0]),  # one call again and again: that is `on_repeat`
        ("ABABA", "1-1-1", "B", [0]),  # a result that is not known repeats nothing
        ("ABABA", None, "C", [0]),
        ("AB", None, "AB", [2, 2]),
        ("ABABA", None, "BA", [3, 3]),
        ("ABABA", None, "BX", [0, 0]),
        ("ABAB", None, "XAB", [0, 0, 0]),
        ("", None, "ABABAB", [0] * 6),  # of one turn: nobody has seen a result yet
        ("", None, "A", [0]),
        ("ABCDEFGHABCDEFGHABCDEFG", None, "H", [3]),
        ("ABCDEFGHIABCDEFGHIABCDEFGH", None, "I", [0]),  # nine calls are too many
    ],
)
def test_by_hand(calls: str, results: str | None, proposed: str, rounds: list[int]) -> None:
    assert list(circle_rounds(past(calls, results), proposed)) == rounds


_LETTERS = st.sampled_from("ABC")
_STEPS = st.lists(st.tuples(_LETTERS, st.sampled_from(["1", "1", "1", "2", None])), max_size=40)
_PROPOSED = st.lists(_LETTERS, min_size=1, max_size=5)


@settings(max_examples=400)
@given(_STEPS, _PROPOSED)
@example(past("ABABA"), ["B"])
def test_against_a_brute_force(before: Past, proposed: list[str]) -> None:
    assert circle_rounds(before, proposed) == brute_force(before, proposed)


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from("ABCD"), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(0, 7),
    _STEPS,
    st.integers(-1, 60),
)
def test_against_a_brute_force_near_circles(
    block: list[str], rounds: int, cut: int, before: Past, changed: int
) -> None:
    """Random calls are seldom a circle: these nearly always are, but for one result."""
    steps: Past = [*before, *((call, call.lower()) for call in block * rounds)]
    steps = steps[: len(steps) - cut] if cut < len(steps) else steps
    if 0 <= changed < len(steps):
        steps[changed] = (steps[changed][0], "other")
    proposed = [block[len(steps) % len(block)]]
    for each in (proposed, [block[0]], [block[-1]]):
        assert circle_rounds(steps, each) == brute_force(steps, each)


def test_only_the_latest_calls_are_looked_at() -> None:
    long = past("AB" * 50_000)
    assert circle_rounds(long, ["B"]) == (0,)
    assert circle_rounds(long, ["A"]) == ((WINDOW + 1) // 2,)

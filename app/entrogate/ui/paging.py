"""A long trajectory in pages: so many turns and tokens each, a long turn over several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE_TOKENS = 20_000
PAGE_TURNS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens ``start`` to ``stop`` of the turn at ``position``; ``is_last``: the turn ends here."""

    position: int
    start: int
    stop: int
    is_last: bool


def pages_of(
    lengths: Sequence[int], *, tokens: int = PAGE_TOKENS, turns: int = PAGE_TURNS
) -> list[list[Part]]:
    """What stands on each page, given the tokens of each turn; one empty page for no turns."""
    pages: list[list[Part]] = [[]]
    room = tokens
    for position, length in enumerate(lengths):
        start = 0
        while True:
            if len(pages[-1]) == turns or room == 0:
                pages.append([])
                room = tokens
            stop = min(length, start + room)
            room -= stop - start
            is_last = stop == length
            pages[-1].append(Part(position=position, start=start, stop=stop, is_last=is_last))
            if is_last:
                break
            start = stop
    return pages

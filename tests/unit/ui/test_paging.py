"""Pages of a long trajectory hold every token once, and none too many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from entrogate.ui.paging import pages_of


@given(
    lengths=st.lists(st.integers(0, 50), max_size=40),
    tokens=st.integers(1, 30),
    turns=st.integers(1, 5),
)
def test_pages_hold_every_token_once(lengths: list[int], tokens: int, turns: int) -> None:
    pages = pages_of(lengths, tokens=tokens, turns=turns)
    parts = [part for page in pages for part in page]
    shown = [(part.position, n) for part in parts for n in range(part.start, part.stop)]
    assert shown == [(at, n) for at, length in enumerate(lengths) for n in range(length)]
    assert [part.position for part in parts if part.is_last] == [*range(len(lengths))]
    for page in pages:
        assert len(page) <= turns
        assert sum(part.stop - part.start for part in page) <= tokens
        assert len({part.position for part in page}) == len(page)
    assert all(pages) or pages == [[]]

"""Tokens as runs, and their texts out of one answer of the model server."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from entrogate.serve.token_texts import _split
from entrogate.store.read.rows import SpanRow
from entrogate.store.read.slices import SlicedTokens
from entrogate.ui.runs import LEVELS, level_of, runs_of

ENTROPIES = st.none() | st.floats(0, 12)


@given(
    entropies=st.lists(ENTROPIES, min_size=1, max_size=60),
    cuts=st.sets(st.integers(0, 60), max_size=4),
)
def test_runs_are_all_tokens_in_order_each_in_its_colour(
    entropies: list[float | None], cuts: set[int]
) -> None:
    ends = sorted({cut for cut in cuts if cut < len(entropies)} | {0, len(entropies)})
    spans = [SpanRow(kind="reasoning", start=a, stop=b) for a, b in pairwise(ends)]
    ids = list(range(len(entropies)))
    texts = {id_: f"<{id_}>" for id_ in ids}
    for start, stop in ((0, len(ids)), (len(ids) // 3, 2 * len(ids) // 3)):
        known = entropies[start:stop]
        sliced = SlicedTokens(
            start=start, token_ids=ids[start:stop], entropy_lower=known, entropy_upper=known
        )
        runs = runs_of(spans, sliced, texts)
        assert "".join(run.text for run in runs) == "".join([*texts.values()][start:stop])
        levels = [run.level for run in runs for _ in range(run.text.count("<"))]
        assert levels == [level_of(entropy) for entropy in known]


def test_levels_and_titles() -> None:
    assert [level_of(value) for value in (0.0, *LEVELS, None)] == [*"01234567", "x"]
    tokens = SlicedTokens(
        start=0,
        token_ids=[1, 2, 3],
        entropy_lower=[1.1, 1.2, None],
        entropy_upper=[1.3, 1.4, None],
    )
    runs = runs_of([SpanRow(kind="answer", start=0, stop=3)], tokens, {})
    assert [(run.text, run.title) for run in runs] == [
        ("⟨1⟩⟨2⟩", "2 tokens, 1.10 to 1.40 nats"),
        ("⟨3⟩", "1 token, entropy unknown"),
    ]
    assert not math.isnan(float(runs[0].level))


TEXTS = st.text(st.characters(exclude_characters="<"), max_size=5)


@given(texts=st.lists(TEXTS, max_size=20), at=st.none() | st.integers(0, 20))
def test_an_answer_is_split_into_its_tokens(texts: list[str], at: int | None) -> None:
    mark, separator = "<tool_call>", 7
    ids = list(range(100, 100 + len(texts)))
    if at is not None and at < len(ids):  # the mark's own token is among them
        ids[at], texts[at] = separator, mark
    joined = mark + "".join(text + mark for text in texts)
    assert _split(joined, ids, separator, mark) == texts
    assert _split(joined + "x", ids, separator, mark) is None
    assert _split(joined[1:], ids, separator, mark) is None

"""Which tokens of an answer make up its text, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.logprobs import TextTokens
from entrogate.wire.said import SaidToken
from tests.unit.wire.pieces import cut

TEXT = st.text(max_size=30)


def tokens(*raws: bytes) -> list[SaidToken]:
    return [SaidToken(token=f"t{i}", bytes=list(raw)) for i, raw in enumerate(raws)]


def taken(found: list[SaidToken]) -> list[str]:
    return [token.token for token in found]


def test_control_tokens_belong_to_no_text() -> None:
    text = TextTokens()
    text.add(tokens(b"<think>", b"Hm", b"</think>", b"t", b"he", b"<|im_end|>"))
    assert taken(text.take("Hm")) == ["t1"]
    assert taken(text.take("the")) == ["t3", "t4"]


def test_a_token_in_two_texts_is_given_out_once() -> None:
    text = TextTokens()
    text.add(tokens(b"abc", b"def", "\u00e9".encode()[:1], "\u00e9".encode()[1:], b"g"))
    assert taken(text.take("ab")) == ["t0"]
    assert taken(text.take("cd")) == ["t1"]
    assert taken(text.take("ef\u00e9")) == ["t2", "t3"]
    assert taken(text.take("g")) == ["t4"]
    assert text.take("x") == []


def test_where_tokens_spell_nothing_all_that_came_are_its() -> None:
    text = TextTokens()
    ids = [SaidToken(token=f"token_id:{n}") for n in range(2)]
    text.add(ids)
    assert text.take("Hi") == ids
    text.add(tokens(b"x"))
    assert taken(text.take("x")) == ["t0"]


@st.composite
def spelled(draw: st.DrawFn) -> tuple[list[bytes], list[tuple[str, int]]]:
    """Tokens of a text, and its deltas with how many tokens had come by then."""
    text = draw(TEXT)
    raw, raws = text.encode(), []
    while raw:
        size = draw(st.integers(1, 6))
        raws.append(raw[:size])
        raw = raw[size:]
    deltas, said = [], ""
    for delta in cut(draw, text):
        said += delta
        needed, size = 0, 0
        while size < len(said.encode()):
            size += len(raws[needed])
            needed += 1
        deltas.append((delta, draw(st.integers(needed, len(raws)))))
    return raws, deltas


@given(spelled())
def test_each_token_comes_once_and_in_order(
    answer: tuple[list[bytes], list[tuple[str, int]]],
) -> None:
    raws, deltas = answer
    text, come, found = TextTokens(), 0, list[str]()
    every = tokens(*raws)
    for delta, by_then in deltas:
        text.add(every[come : max(come, by_then)])
        come = max(come, by_then)
        found += taken(text.take(delta))
    assert found == taken(every)

"""Scores of the answer without a call, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.label.shadows import answer_like, score_by_agreement, score_by_gold


@pytest.mark.parametrize(
    ("text", "answer", "final", "found"),
    [
        ("Oslo", "Paris", "Paris", "Oslo"),
        (" Oslo\n", "Paris", "\nParis ", "Oslo"),
        ("The answer is Oslo.", "Paris", "The answer is Paris.", "Oslo"),
        ("Hm. The answer is Oslo.\nBye.", "Paris", "I looked. The answer is Paris.", None),
        ("Let me see.\nAnswer: Oslo", "Paris", "Thinking.\nAnswer: Paris", "Oslo"),
        ("Answer: Rome\nno,\nAnswer: Oslo", "Paris", "Answer: Paris", "Oslo"),
        ("I think so.\nOslo", "Paris", "It is known.\nParis", "Oslo"),
        ("I think so.\nOslo.", "Paris", "It is known.\nParis.", "Oslo"),
        ("Oslo is it", "Paris", "Paris\nis a town", "Oslo is it"),
        ("Oslo", "Paris", "The answer is Paris.", "Oslo"),  # not in that form
        ("Oslo", "Lyon", "The answer is Paris.", "Oslo"),  # not taken from the text
        ("Oslo", "", "Paris", "Oslo"),
    ],
)
def test_the_answer_is_where_it_was_in_the_final_text(
    text: str, answer: str, final: str, found: str | None
) -> None:
    assert answer_like(text, answer=answer, final=final) == (text if found is None else found)


@given(
    answer=st.text(alphabet="abcde", min_size=1),
    other=st.text(alphabet="fghij", min_size=1),
    before=st.text(alphabet="xyz: ", min_size=1).filter(str.strip),
    after=st.text(alphabet="uvw.", max_size=3),
)
def test_in_the_same_form_it_is_found(answer: str, other: str, before: str, after: str) -> None:
    final = f"{before}{answer}{after}"
    assert answer_like(f"{before}{other}{after}", answer=answer, final=final).strip() == other


def test_gold_compares_the_answer_alone() -> None:
    given = {"answer": "Paris", "final": "The answer is Paris."}
    assert score_by_gold("The answer is Oslo.", ("oslo", "Christiania"), **given) == 1
    assert score_by_gold("The answer is Rome.", ("oslo", "Christiania"), **given) == 0
    assert score_by_gold("I say Oslo", ("oslo",), **given) == pytest.approx(0.5)  # 1/3 and 1


def test_agreement_needs_a_trajectory_that_was_right() -> None:
    assert score_by_agreement("Paris", final="paris.", outcome=0.5) == 1
    assert score_by_agreement("Rome", final="paris.", outcome=1) == 0
    assert score_by_agreement("Paris", final="Paris", outcome=0.49) is None
    assert score_by_agreement("Paris", final=" \n", outcome=1) is None

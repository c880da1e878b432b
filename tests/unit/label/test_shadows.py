"""Scores of the answer without a call, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.label.shadows import ByAgreement, ByGold, Place


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
    assert Place.of(answer, final).taken_from(text) == (text if found is None else found)


@given(
    answer=st.text(alphabet="abcde", min_size=1),
    other=st.text(alphabet="fghij", min_size=1),
    before=st.text(alphabet="xyz: ", min_size=1).filter(str.strip),
    after=st.text(alphabet="uvw.", max_size=3),
)
def test_in_the_same_form_it_is_found(answer: str, other: str, before: str, after: str) -> None:
    final = f"{before}{answer}{after}"
    assert Place.of(answer, final).taken_from(f"{before}{other}{after}").strip() == other


@given(answer=st.text("ab \n", min_size=1), final=st.text("ab \n"), text=st.text("ab \n"))
def test_it_is_the_last_place(answer: str, final: str, text: str) -> None:
    """Against the same by `rfind`."""
    answer, final, text = answer.strip(), final.strip(), text.strip()
    at = final.rfind(answer) if answer and answer != final else -1
    before = final[:at].rpartition("\n")[2].lstrip() if at >= 0 else ""
    place = Place.of(answer, final)
    assert place.before == before
    if before:
        found = text.rfind(before)
        rest = text[found + len(before) :].partition("\n")[0].rstrip().removesuffix(place.after)
        assert place.taken_from(text) == (text if found < 0 else rest)


def test_long_texts_that_nearly_agree_at_every_place_take_no_time() -> None:
    """`rfind` takes the product of the lengths: an hour for these."""
    near = "ab" + "a" * 2_000_000
    assert Place.of(near, "a" * 4_000_000) == Place()
    asked = ByGold(("Oslo",), answer="Oslo", final=f"{near}Oslo.")
    assert asked.score("a" * 4_000_000) == 0


def test_gold_compares_the_answer_alone() -> None:
    asked = ByGold(("oslo", "Christiania"), answer="Paris", final="The answer is Paris.")
    assert asked.score("The answer is Oslo.") == 1
    assert asked.score("The answer is Rome.") == 0
    asked = ByGold(("oslo",), answer="Paris", final="The answer is Paris.")
    assert asked.score("I say Oslo") == pytest.approx(0.5)  # 1/3 and 1


def test_agreement_needs_a_trajectory_that_was_right() -> None:
    assert ByAgreement(final="paris.", outcome=0.5).score("Paris") == 1
    assert ByAgreement(final="paris.", outcome=1).score("Rome") == 0
    assert ByAgreement(final="Paris", outcome=0.49).score("Paris") is None
    assert ByAgreement(final=" \n", outcome=1).score("Paris") is None


def test_sentences_that_differ_in_the_answer_alone_do_not_agree() -> None:
    """Their F1 is 0.75: two wrong answers of three words would count as right."""
    asked = ByAgreement(final="The answer is Rome.", outcome=1)
    assert asked.score("The answer is Nowhere.") == 0
    assert asked.score("Rome is the answer") == 0
    assert asked.score("the answer is  ROME") == 1

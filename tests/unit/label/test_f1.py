"""Token F1 by hand."""

import pytest

from entrogate.label import f1, squad_f1
from entrogate.label.f1 import Golds, best_f1


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Paris", "paris", 1.0),
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in Paris, France", "Paris", 0.5),  # precision 1/3, recall 1
        ("a b c d", "b c e", 4 / 6),  # "a" is an article: 2 of 3 and 2 of 3
        ("red red blue", "red green", 0.4),  # one red counts once: 1/3, 1/2
        ("Rome", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("Paris", "", 0.0),
        ("", "", 1.0),
        ("the", "an", 1.0),  # nothing left of either
        ("4.2", "42", 1.0),  # SQuAD strips all punctuation
        ("well-known", "wellknown", 1.0),
        ("theatre", "atre", 0.0),  # articles are whole words
        ("  New\tYork\n", "new york", 1.0),
    ],
)
def test_by_hand(answer, gold, f1):
    assert squad_f1(answer, gold) == pytest.approx(f1)
    assert squad_f1(gold, answer) == pytest.approx(f1)


def test_the_best_gold_counts() -> None:
    assert best_f1("the red fox", ["blue", "red fox", "fox"]) == 1.0
    assert best_f1("red", ["blue", "green"]) == 0.0


def test_the_answer_is_read_once_however_many_golds_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    words = f1.words  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(f1, "words", lambda text: (read.append(text), words(text))[1])
    best_f1("said", [f"gold {i}" for i in range(50)])
    assert len(read) == 51


def test_golds_are_read_once_however_many_answers_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    words = f1.words  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(f1, "words", lambda text: (read.append(text), words(text))[1])
    golds = Golds([f"gold {i}" for i in range(50)])
    assert [golds.best(f"gold {i}") for i in range(10)] == [1.0] * 10
    assert len(read) == 60

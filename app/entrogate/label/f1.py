"""Token F1 of an answer, as SQuAD's evaluation script defines it (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_f1(answer: str, gold: str) -> float:
    """F1 of the two bags of words, in [0, 1].

    Both are lower-cased, stripped of ASCII punctuation and English articles, and split at
    whitespace. Where nothing is left of one of them: 1 if nothing is left of the other, else 0.
    """
    return best_f1(answer, (gold,))


def best_f1(answer: str, golds: Iterable[str]) -> float:
    """The best F1 of ``answer`` against one of ``golds``, in time linear in all of them."""
    return Golds(golds).best(answer)


class Golds:
    """Accepted answers, read once for however many answers are compared with them."""

    __slots__ = ("_wanted",)

    def __init__(self, golds: Iterable[str]) -> None:
        self._wanted = [(words, words.total()) for words in map(_bag, golds)]

    def best(self, answer: str) -> float:
        """The best F1 of ``answer`` against one of them, in time linear in ``answer`` for each."""
        said = _bag(answer)
        n_said = said.total()
        return max(_f1(said, n_said, wanted, n_wanted) for wanted, n_wanted in self._wanted)


def _f1(said: Counter[str], n_said: int, wanted: Counter[str], n_wanted: int) -> float:
    if not n_said or not n_wanted:
        return float(n_said == n_wanted)
    few, many = (said, wanted) if len(said) < len(wanted) else (wanted, said)
    common = sum(min(count, many[word]) for word, count in few.items())
    if common == 0:
        return 0.0
    precision, recall = common / n_said, common / n_wanted
    return 2 * precision * recall / (precision + recall)


def _bag(text: str) -> Counter[str]:
    return Counter(words(text))


def words(text: str) -> list[str]:
    """The words that are compared: lower-cased, without ASCII punctuation and English articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()

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
    said = Counter(_words(answer))
    n_said = said.total()
    return max(_f1(said, n_said, Counter(_words(gold))) for gold in golds)


def _f1(said: Counter[str], n_said: int, wanted: Counter[str]) -> float:
    n_wanted = wanted.total()
    if not n_said or not n_wanted:
        return float(n_said == n_wanted)
    common = sum(min(count, said[word]) for word, count in wanted.items())
    if common == 0:
        return 0.0
    precision, recall = common / n_said, common / n_wanted
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()

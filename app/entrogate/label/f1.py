"""Token F1 of an answer, as SQuAD's evaluation script defines it (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_f1(answer: str, gold: str) -> float:
    """F1 of the two bags of words, in [0, 1].

    Both are lower-cased, stripped of ASCII punctuation and English articles, and split at
    whitespace. Where nothing is left of one of them: 1 if nothing is left of the other, else 0.
    """
    said, wanted = _words(answer), _words(gold)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()

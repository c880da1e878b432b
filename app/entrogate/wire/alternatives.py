"""Finds one token among the alternatives of an answer without reading the others.

The tool-call token is one of k alternatives at each of many positions. Decoding all their texts to
find it would double the cost of a streamed event, so it is looked for in the bytes. This is sound
because every quote inside a JSON string is escaped: ``"token":"X","logprob":`` and
``{"token":"`` with bare quotes can only be what they look like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import orjson

_LIST = b'"top_logprobs":['
_OBJECT = b'{"token":"'
_NAN = math.nan


def marks_of(texts: Iterable[str]) -> tuple[bytes, ...]:
    """How an alternative with one of these texts begins in vLLM's JSON."""
    return tuple(b'"token":%s,"logprob":' % orjson.dumps(text) for text in texts)


def probabilities(answer: bytes, marks: tuple[bytes, ...], n_tokens: int) -> list[float]:
    """Probability of the marked token among the alternatives of each of the ``n_tokens``.

    ``answer`` is a chunk or a body with one choice. ``nan`` where the token is not among them, and
    everywhere when the answer does not hold ``n_tokens`` lists.
    """
    for mark in marks:
        if mark in answer:
            return _located(answer, mark, n_tokens)
    return [_NAN] * n_tokens


def _located(answer: bytes, mark: bytes, n_tokens: int) -> list[float]:
    lists = answer.split(_LIST)
    if len(lists) != n_tokens + 1:
        return [_NAN] * n_tokens
    found: list[float] = []
    for number, part in enumerate(lists[1:], start=1):
        at = part.find(mark)
        # Behind its list a part ends with the head of the next token, which is no alternative.
        if at < 0 or (number < n_tokens and at > part.rfind(_OBJECT)):
            found.append(_NAN)
            continue
        start = at + len(mark)
        try:
            found.append(math.exp(min(float(part[start : part.find(b",", start)]), 0.0)))
        except ValueError:
            found.append(_NAN)
    return found

"""Whether the answer without a call (a shadow, `docs/shadows.md`) would have been right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entrogate.label.f1 import Golds, words

RIGHT = 0.5
"""From this score on an answer counts as right, that of a trajectory or of a shadow."""


def is_whole(finish_reason: str | None) -> bool:
    """Has an answer that stopped for this reason come to its own end?"""
    return finish_reason is not None and finish_reason != "length"


class ByGold:
    """Scores shadows of one trajectory by F1 against the best of ``gold``, in [0, 1].

    ``answer`` is what the caller took out of ``final``, the text of the trajectory's last turn; a
    shadow's answer is taken out of its text in the same way (`Place`).
    """

    __slots__ = ("_golds", "_place")

    def __init__(self, gold: Sequence[str], *, answer: str, final: str) -> None:
        self._golds = Golds(gold)
        self._place = Place.of(answer, final)

    def score(self, text: str) -> float:
        """Of the shadow that says ``text``."""
        return self._golds.best(self._place.taken_from(text))


class ByAgreement:
    """Scores shadows of one trajectory by whether they say what ``final`` says: 1 or 0.

    The same words in the same order (`f1.words`). Sentences that differ in the answer alone share
    most of their words, so a measure of overlap would call a wrong answer right.

    None where there is nothing to agree with: the ``outcome`` is below `RIGHT`, or the trajectory
    ended without a text.
    """

    __slots__ = ("_final",)

    def __init__(self, *, final: str, outcome: float) -> None:
        self._final = words(final) if outcome >= RIGHT and final.strip() else None

    def score(self, text: str) -> float | None:
        """Of the shadow that says ``text``."""
        return None if self._final is None else float(words(text) == self._final)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an answer stands in a text.

    Between the same words on its line ("The answer is … ."), or on the last line. With neither it
    is the whole text.
    """

    before: str = ""
    after: str = ""
    on_last_line: bool = False

    @classmethod
    def of(cls, answer: str, final: str) -> Place:
        """That of ``answer`` in ``final``, in time linear in both."""
        answer, final = answer.strip(), final.strip()
        at = _last(final, answer) if answer else -1
        if at < 0 or answer == final:
            return cls()
        before = final[:at].rpartition("\n")[2].lstrip()
        after = final[at + len(answer) :].partition("\n")[0].rstrip()
        is_last_line = at + len(answer) + len(after) == len(final)
        if before.strip():
            return cls(before=before, after=after)
        return cls(after=after, on_last_line=True) if is_last_line else cls()

    def taken_from(self, text: str) -> str:
        """What stands there in ``text``; all of it where there is no such place."""
        text = text.strip()
        if self.before:
            found = _last(text, self.before)
            if found < 0:
                return text
            rest = text[found + len(self.before) :].partition("\n")[0].rstrip()
            return rest.removesuffix(self.after)
        return text.rpartition("\n")[2].removesuffix(self.after) if self.on_last_line else text


def _last(text: str, part: str) -> int:
    """As ``text.rfind(part)``, which takes the product of both lengths; -1: it is not there."""
    found = text[::-1].find(part[::-1])
    return found if found < 0 else len(text) - found - len(part)

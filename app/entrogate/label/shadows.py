"""Whether the answer without a call (a shadow, `docs/shadows.md`) would have been right."""

from __future__ import annotations

from collections.abc import Sequence

from entrogate.label.f1 import best_f1

RIGHT = 0.5
"""From this score on an answer counts as right, that of a trajectory or of a shadow."""


def is_whole(finish_reason: str | None) -> bool:
    """Has an answer that stopped for this reason come to its own end?"""
    return finish_reason is not None and finish_reason != "length"


def score_by_gold(text: str, gold: Sequence[str], *, answer: str, final: str) -> float:
    """F1 of a shadow's ``text`` against the best of ``gold``, in [0, 1].

    ``answer`` is what the caller took out of ``final``, the text of the trajectory's last turn; the
    shadow's answer is taken out of its text in the same way (`answer_like`).
    """
    return best_f1(answer_like(text, answer=answer, final=final), gold)


def score_by_agreement(text: str, *, final: str, outcome: float) -> float | None:
    """F1 of a shadow's ``text`` against ``final``, in [0, 1]; None where there is nothing to agree
    with: the trajectory's ``outcome`` is below `RIGHT`, or it ended without a text."""
    if outcome < RIGHT or not final.strip():
        return None
    return best_f1(text, (final,))


def answer_like(text: str, *, answer: str, final: str) -> str:
    """The part of ``text`` that stands where ``answer`` stands in ``final``.

    Between the same words on its line ("The answer is … ."), else on the last line where ``answer``
    is the last line of ``final``; the whole text where neither is found.
    """
    text, answer, final = text.strip(), answer.strip(), final.strip()
    at = final.rfind(answer) if answer else -1
    if at < 0 or answer == final:
        return text
    before = final[:at].rpartition("\n")[2].lstrip()
    after = final[at + len(answer) :].partition("\n")[0].rstrip()
    if before.strip():
        found = text.rfind(before)
        if found < 0:
            return text
        rest = text[found + len(before) :].partition("\n")[0].rstrip()
        return rest.removesuffix(after)
    is_last_line = at + len(answer) + len(after) == len(final)
    return text.rpartition("\n")[2].removesuffix(after) if is_last_line else text

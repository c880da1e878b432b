"""What the engine captured of a choice, and whether it can be all of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entrogate.engine.frames import MOST, TOKEN, VERSION, Began, Ended, Gated, Message, check
from entrogate.turn.tokens import ChoiceTokens
from entrogate.upstream.captures import ChoiceCapture
from tests.unit.turn.capabilities import CAPABILITIES


def gated(position: int, n_tokens: int = 1) -> Gated:
    return Gated(0, position, "suppress", 0.5, n_tokens, 0.9)


def taken(entropy: float, *acts: Gated) -> str | None:
    """Why the capture of two tokens is incomplete."""
    tokens = np.zeros(2, TOKEN)
    tokens["entropy"] = entropy
    captured = ChoiceCapture(parts=[tokens.tobytes()], n_tokens=2, n_ended=2, gated=list(acts))
    choice = ChoiceTokens(CAPABILITIES, None)
    choice.take_captured(captured, None)
    return choice.gap


def test_a_capture_that_makes_sense_is_complete() -> None:
    assert taken(0.5) is None
    assert taken(0.5, gated(2)) is None  # the answer ended where it was masked


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_an_entropy_that_is_no_number_labels_nothing(entropy: float) -> None:
    assert taken(entropy) == "capture_incomplete"


def test_an_act_beyond_the_answer_is_of_another() -> None:
    assert taken(0.5, gated(3)) == "capture_incomplete"


@pytest.mark.parametrize("number", [MOST, 2**63, 2**64 - 1])
def test_numbers_that_no_database_holds_are_refused(number: int) -> None:
    def message(
        *began: Began, acts: tuple[Gated, ...] = (), ended: tuple[Ended, ...] = ()
    ) -> Message:
        return Message(VERSION, 1, 0, [*began], b"", [*acts], [*ended])

    check(message(Began(0, "1", 0, b""), acts=(gated(1),), ended=(Ended(0, 1),)))
    for wrong in (
        message(Began(0, "1", number, b"")),
        message(Began(0, "1", 0, b"", number)),
        message(acts=(gated(number),)),
        message(acts=(gated(1, number),)),
        message(ended=(Ended(0, number),)),
    ):
        with pytest.raises(ValueError, match="that there is not"):
            check(wrong)

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


def act(position: int, p_sampled: float, *, n_tokens: int = 5, action: str = "suppress") -> Gated:
    return Gated(0, position, action, 0.5, n_tokens, 0.25, p_sampled)


def acted(*acts: Gated) -> ChoiceTokens:
    """A choice of eight tokens on which the engine's gate did this."""
    tokens = np.zeros(8, TOKEN)
    captured = ChoiceCapture(parts=[tokens.tobytes()], n_tokens=8, n_ended=8, gated=list(acts))
    choice = ChoiceTokens(CAPABILITIES, None)
    choice.take_captured(captured, None)
    return choice


def test_of_several_masked_calls_the_likeliest_stands_for_all() -> None:
    tokens = acted(act(1, 0.01, n_tokens=1), act(5, 0.3), act(6, 0.2), act(6, 0.2))
    assert tokens.gated == act(5, 0.3)
    assert tokens.p_masked == pytest.approx(1 - 0.7 * 0.8)  # of one segment, each place once
    assert tokens.altered == [(1, 2), (5, 6), (6, 7), (6, 7)]


def test_an_engine_that_does_not_say_has_the_raw_probability() -> None:
    assert acted(act(5, math.nan)).p_masked == 0.25
    assert acted().p_masked == 0.0


def test_a_forced_call_comes_first() -> None:
    forced = act(4, math.nan, action="force")
    assert acted(act(2, 0.9), forced).gated is forced


@pytest.mark.parametrize("p_sampled", [-0.1, 1.1, math.inf])
def test_a_probability_that_is_none_is_refused(p_sampled: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        check(Message(VERSION, 1, 0, [], b"", [act(1, p_sampled)], []))
    check(Message(VERSION, 1, 0, [], b"", [act(1, math.nan)], []))

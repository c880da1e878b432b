"""The time in a call id, and ids that hold none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.turn.ids import mint_call
from entrogate.wire.minted import is_minted, minted_at, minted_call

NOW = 1_795_000_000.0


@given(st.integers(1_767_225_600_000, 2**48 - 1), st.binary(min_size=6, max_size=6))
def test_an_id_holds_its_time_to_the_millisecond(milliseconds: int, noise: bytes) -> None:
    call_id = minted_call(milliseconds / 1000 + 0.0001, noise)
    assert is_minted(call_id)
    assert len(call_id) == len("call_eg") + 24
    assert minted_at(call_id) == milliseconds / 1000


def test_ids_of_one_moment_differ() -> None:
    ids = {mint_call(NOW) for _ in range(1000)}
    assert len(ids) == 1000
    assert {minted_at(call_id) for call_id in ids} == {NOW}


@pytest.mark.parametrize(
    "call_id",
    [
        "",
        "call_eg",
        "toolu_01",
        "call_eg" + "0" * 24,
        "call_eg" + "0" * 23,
        "call_eg" + "G" * 24,
        minted_call(NOW, b"123456").upper(),
        minted_call(NOW, b"123456") + "0",
        minted_call(NOW, b"123456") + "\n",
    ],
)
def test_other_ids_hold_no_time(call_id: str) -> None:
    assert minted_at(call_id) is None


def test_ids_of_before_hold_no_time_that_could_be() -> None:
    """They were random throughout: hardly any is past, and none of the day before now."""
    numbers = random.Random(1)
    found = [minted_at("call_eg" + numbers.randbytes(12).hex()) for _ in range(20_000)]
    past = [at for at in found if at is not None and at <= NOW]
    assert len(past) < 10
    assert not [at for at in past if at > NOW - 86_400]


@pytest.mark.parametrize("at", [-1.0, 0.0, 1e20])
def test_a_clock_out_of_range_still_names_calls(at: float) -> None:
    assert is_minted(minted_call(at, b"123456"))

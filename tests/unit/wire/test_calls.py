"""Tool calls are the same calls, however a parser cuts, mixes and repeats their pieces."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from entrogate.errors import UpstreamProtocol
from entrogate.wire.calls import MAX_CALLS, MAX_CHARACTERS, MAX_NAME_CHARACTERS, CallAccumulator
from entrogate.wire.chunks import ToolCallPart
from tests.unit.wire.pieces import Call, part, said_calls


def calls_of(accumulated: CallAccumulator) -> list[Call]:
    return [(c.index, c.upstream_id, c.name, c.arguments) for c in accumulated.calls]


def fed(*parts: ToolCallPart) -> list[Call]:
    accumulated = CallAccumulator()
    for one in parts:
        accumulated.feed([one])
    return calls_of(accumulated)


A = (0, "a", "lookup", '{"x":1}')


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([part(0, "lookup", '{"x":1}', "a")], [A]),
        ([part(0, "lookup", "", "a"), part(0, args='{"x"'), part(0, args=":1}")], [A]),
        ([part(0, call="a", args=""), part(0, "lookup", ""), part(0, args='{"x":1}')], [A]),
        ([part(0, call="a"), part(0, args='{"x":1}'), part(0, "lookup")], [A]),
        ([part(0, "look", call="a"), part(0, "up", ""), part(0, args='{"x":1}')], [A]),
        ([part(0, "look", call="a"), part(0, "up"), part(0, "lookup", '{"x":1}')], [A]),
        ([part(0, "lookup", '{"x"', "a"), part(0, "lookup", ":1}")], [A]),
        ([part(0, "lookup", '{"x"', "a"), part(0, "", ":1}", "")], [A]),
        ([part(0, "lookup", '{"x"', "a"), part(0, None, ":1}", "b")], [A]),
        ([part(0, "lookup", '{"x"', ""), part(0, None, ":1}", "a")], [A]),
        ([part(0, "lookup", None, "a"), part(0, args='{"x":1}'), part(0, args=None)], [A]),
        ([part(0, "lookup", None, "a")], [(0, "a", "lookup", "")]),
    ],
)
def test_one_call_however_it_is_said(parts: list[ToolCallPart], wanted: list[Call]) -> None:
    assert fed(*parts) == wanted


def test_calls_are_in_the_order_of_their_indexes() -> None:
    wanted = [(1, "b", "search", "{}"), (3, "a", "lookup", "[]")]
    assert fed(part(3, "lookup", "[", "a"), part(1, "search", "{}", "b"), part(3, args="]")) == (
        wanted
    )
    accumulated = CallAccumulator()
    accumulated.feed([part(3, "lookup", "[", "a"), part(1, "search", "{}", "b"), part(3, args="]")])
    assert calls_of(accumulated) == wanted
    assert accumulated.get(3) is accumulated.calls[1]
    assert accumulated.get(0) is None


def test_a_piece_without_a_function_is_taken() -> None:
    bare = msgspec.convert({"index": 0, "id": "a"}, ToolCallPart)
    assert fed(bare) == [(0, "a", "", "")]


def test_the_calls_of_a_body_are_numbered_by_position() -> None:
    accumulated = CallAccumulator()
    accumulated.feed_whole([part(0, "lookup", "{}", "a"), part(0, "search", "{}", "b")])
    assert calls_of(accumulated) == [(0, "a", "lookup", "{}"), (1, "b", "search", "{}")]


def test_a_name_is_known_when_arguments_follow_it() -> None:
    accumulated = CallAccumulator()
    seen: list[bool] = []
    for piece in (part(call="a", args="{"), part(name="look"), part(name="up"), part(args="}")):
        accumulated.feed([piece])
        seen.append(accumulated.calls[0].is_named)
    assert seen == [False, False, False, True]
    assert calls_of(accumulated) == [(0, "a", "lookup", "{}")]


def test_an_upstream_without_end_is_an_error() -> None:
    many = CallAccumulator()
    many.feed(part(index, "f") for index in range(MAX_CALLS))
    with pytest.raises(UpstreamProtocol, match="tool calls"):
        many.feed([part(MAX_CALLS, "f")])
    long = CallAccumulator()
    long.feed([part(0, "f", "x" * (MAX_CHARACTERS // 2)), part(1, args="x" * 1000)])
    with pytest.raises(UpstreamProtocol, match="characters"):
        long.feed([part(1, args="x" * (MAX_CHARACTERS // 2))])
    with pytest.raises(UpstreamProtocol, match="name"):
        CallAccumulator().feed(part(0, "nm"[i % 2]) for i in range(MAX_NAME_CHARACTERS + 1))


@given(answer=said_calls())
def test_any_mixture_of_pieces_is_the_same_calls(
    answer: tuple[list[Call], list[list[ToolCallPart]]],
) -> None:
    wanted, deltas = answer
    accumulated = CallAccumulator()
    for delta in deltas:
        accumulated.feed(delta)
    assert calls_of(accumulated) == wanted

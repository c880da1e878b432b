"""One form for all texts of the same JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.canonical import Canonical


def form(text: str) -> bytes:
    return Canonical().of(text)


@pytest.mark.parametrize(
    "same",
    [
        ["1", "1.0", "1e0", "10e-1", "1E+0", "0.1e1", " 1 "],
        ["0", "-0", "0.0", "-0e5", "0e99999"],
        ["1e22", "10000000000000000000000"],
        ["1e400", "10e399", "0.1e401"],
        ["12345678901234567890123", "12345678901234567890123.0", "1234567890123456789012.3e1"],
        ["-0.50", "-5e-1"],
        ['{"a":1,"b":[true,null]}', '{ "b" : [ true , null ], "a" : 1.0 }'],
        ['"A"', r'"\u0041"'],
        ['"😀/"', r'"\ud83d\ude00\/"'],
        ['{"a":2}', '{"a":1,"a":2}'],
    ],
)
def test_writings_of_one_value(same: list[str]) -> None:
    assert len({form(text) for text in same}) == 1
    assert form(same[0]).startswith(b"=")


def test_what_differs_stays_different() -> None:
    texts = [
        "12345678901234567890123",
        "12345678901234567890124",
        "1234567890123456789012.3",
        "0.1",
        "0.10000000000000000001",
        "1e400",
        "1e401",
        '"1"',
        "1",
        "true",
        "null",
        "[]",
        "{}",
        '""',
        "[1,2]",
        "[12]",
        '["1,2"]',
        "NaN",
        "Infinity",
        "not json",
        "not  json",
        '{"a":1}}',
        r'{"q":"\ud83d"}',
        r'{"q":"\ud83e"}',
        '{"a":{"b":1}}',
        '{"a":1}',
        "[" * 5_000 + "]" * 5_000,
        "1" * 5_000,
        "1" * 4_999 + "2",
        "1e99999999999999999999",
        "",
    ]
    assert len({form(text) for text in texts}) == len(texts)


def test_equal_keys_in_any_order_are_those_that_count() -> None:
    assert form('{"a":1,"b":2,"a":3}') == form('{"b":2,"a":3}') != form('{"b":2,"a":1}')


def test_too_many_numbers_stand_for_themselves() -> None:
    numbers = "[" + ",".join(["0.5"] * 10) + "]"
    canonical = Canonical(numbers=15)
    assert canonical.of(numbers) == form(numbers)
    assert canonical.of(numbers) == b"~" + numbers.encode()
    assert canonical.of("[1,2]") == form("[1,2]")  # whole numbers are not counted


def test_too_many_values_stand_for_themselves() -> None:
    canonical = Canonical(values=5)
    assert canonical.of("[1,2]") == form("[1,2]")
    other = canonical.copy()
    assert canonical.of(' {"b":[3]} ') == other.of(' {"b":[3]} ') == form('{"b":[3]}')
    assert canonical.of("[4,5]") == b"~[4,5]"
    assert canonical.of('"text"') == form('"text"')  # no separators, no work


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON, JSON)
def test_forms_are_equal_exactly_where_the_values_are(one: Any, other: Any) -> None:
    first, second = written(one), written(other)
    assert (form(first) == form(second)) == (exact(first) == exact(second))
    assert form(first) == form(written(one, turned=True))


def written(value: Any, *, turned: bool = False) -> str:
    """JSON with exact numbers; ``turned``: with other spacing, and keys the other way round."""
    comma = " ,\n" if turned else ","
    match value:
        case Decimal():
            return str(value)
        case list():
            return f"[{comma.join(written(item, turned=turned) for item in value)}]"
        case dict():
            items = [
                f"{json.dumps(key, ensure_ascii=turned)}:{written(inner, turned=turned)}"
                for key, inner in value.items()
            ]
            return f"{{{comma.join(items[::-1] if turned else items)}}}"
        case _:
            return json.dumps(value, ensure_ascii=turned)


def exact(text: str) -> Any:
    """The value by an independent route, every number a Decimal, which 1 and true are not both."""
    return tagged(json.loads(text, parse_float=Decimal, parse_int=Decimal))


def tagged(value: Any) -> Any:
    match value:
        case list():
            return ["list", *(tagged(item) for item in value)]
        case dict():
            return {key: tagged(inner) for key, inner in value.items()}
        case _:
            return (type(value).__name__, value)

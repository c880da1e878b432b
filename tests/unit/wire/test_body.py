"""JSON bodies: encodings, numbers that do not change, bounds."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from entrogate.errors import RequestError
from entrogate.wire import body as module
from entrogate.wire.body import MAX_DEPTH, from_json, parse_json, parse_json_object, to_json


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_every_encoding_that_json_loads_detects(encoding: str) -> None:
    raw = '{"a": "é😀", "b": [1]}'.encode(encoding)
    assert parse_json(raw) == json.loads(raw) == {"a": "é😀", "b": [1]}


@pytest.mark.parametrize(
    "number",
    ["12345678901234567890123", "-9223372036854775809", "18446744073709551616", "1" * 999],
)
def test_integers_of_any_size_stay_as_they_are(number: str) -> None:
    assert to_json(parse_json(f'{{"n":{number}}}'.encode())) == f'{{"n":{number}}}'.encode()


def test_of_equal_keys_the_last_one_counts() -> None:
    raw = rb'{"a":1,"\u0061":2}'
    assert parse_json(raw) == json.loads(raw) == {"a": 2}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"\x80",
        b'{"a":NaN}',
        b"[Infinity]",
        b"[1e999]",
        b"[" + b"1" * 5000 + b"]",
        rb'["\ud800"]',
        rb'["\ud800x"]',
        rb'{"\udc00":1}',
        '"\ud800"'.encode("utf-16-le", "surrogatepass"),
        b'["a\nb"]',
        b"{} {}",
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        parse_json(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> bytes:
        return opening * depth + b"1" + closing * depth

    assert to_json(parse_json(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 300, 2_000, 500_000):
        with pytest.raises(RequestError, match=f"more than {MAX_DEPTH} deep") as caught:
            parse_json(nested(depth))
        assert caught.value.status == 400


def test_the_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 1_000)
    monkeypatch.setattr(module, "_SURELY_FEW", 2_000)
    for many in (b"[" + b"1," * 1_500 + b"1]", b"[" + b"[]," * 1_500 + b"1]"):
        with pytest.raises(RequestError, match="more than 1000 values"):
            parse_json(many)
    text = 'a,b,[{"\\' * 1_500  # what looks like values in a string is none
    assert parse_json(to_json([text, "\\"])) == [text, "\\"]


def test_long_numbers_are_refused_where_they_would_be_slow() -> None:
    long = b"1" * 4_000
    text = b'"' + b"3141592653" * 40_000 + b'\\"1"'  # digits in a text are no number
    assert parse_json(b'{"a":' + text + b"}") == {"a": json.loads(text)}
    with pytest.raises(RequestError, match="a number of more than 400 digits"):
        parse_json(b"[" + text + b"," + b",".join([long] * 100) + b"]")


@pytest.mark.parametrize("raw", [b"[1]", b'"x"', b"1", b"null"])
def test_an_object_is_wanted(raw: bytes) -> None:
    with pytest.raises(RequestError, match="must be a JSON object"):
        parse_json_object(raw)


def test_what_is_written_is_what_the_standard_library_reads() -> None:
    value: Any = {"a": [1, -2.5, 1e300, True, None, 'é\u2028"\\', 10**30], "": {}}
    assert json.loads(to_json(value)) == value


def test_fragments_beside_big_integers() -> None:
    fragment = orjson.Fragment(b'{"as":1.0}')
    assert to_json([fragment]) == b'[{"as":1.0}]'
    assert to_json([10**30, fragment]) == b"[1" + b"0" * 30 + b',{"as":1.0}]'
    with pytest.raises(TypeError, match="object is not JSON"):
        to_json([object()])


def test_what_is_written_is_read_again() -> None:
    value = {"a": [10**30, 1.5, "é", None, True]}
    assert from_json(to_json(value)) == from_json(to_json(value).decode()) == value

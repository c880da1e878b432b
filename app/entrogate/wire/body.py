"""JSON bodies: what may come in, and how it goes out, without a number that changes on the way.

A body is read as vLLM reads it (any Unicode encoding, with or without a byte order mark; of equal
keys the last one counts), within bounds on its depth and on how many values it holds. Integers of
any size stay exact. What JSON does not have (NaN, Infinity, half of a surrogate pair) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import msgspec
import numpy as np
import orjson

from entrogate.errors import RequestError

MAX_DEPTH = 200  # vLLM's own serialiser stops at 255
MAX_VALUES = 1_000_000  # prompts of a million token ids exist
MAX_DIGITS = 400  # reading and writing a number takes time that grows with their square
_SEPARATORS = (b",", b"[", b"{")
_LONG_RUN = b"0" * (MAX_DIGITS + 1)
_DIGITS_AS_0 = bytes.maketrans(b"123456789", b"0" * 9)
_SURELY_FEW = 2 * MAX_VALUES  # bytes: a value takes two at least
_SURELY_QUICK = 1 << 16  # bytes, whatever numbers stand in them


def parse_json(raw: bytes) -> Any:
    """The JSON value in ``raw``. Raises RequestError for what is not JSON, too deep or too much."""
    text = _utf8(raw)
    if len(text) > _SURELY_FEW and _n_values(text, enough=MAX_VALUES) > MAX_VALUES:
        raise _refused(f"more than {MAX_VALUES} values; split it")
    slow = len(text) > _SURELY_QUICK and has_long_number(text)
    if slow and has_long_number(_outside_strings(text)):
        raise _refused(f"a number of more than {MAX_DIGITS} digits; write it as a string")
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    check_depth(value)
    return value


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Parse ``raw`` as a JSON object. Raises RequestError, also for any other JSON value."""
    body = parse_json(raw)
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object", code="invalid_json")
    return cast("dict[str, Any]", body)


def to_json(value: object) -> bytes:
    """``value`` as JSON: what orjson writes, NumPy's arrays, and integers of any size too."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return _EXACT.encode(value)


def from_json(text: bytes | str) -> Any:
    """What `to_json` wrote: of our own records, so without bounds."""
    return msgspec.json.decode(text)


def check_depth(value: object, limit: int = MAX_DEPTH) -> None:
    """RequestError where objects and lists are nested more than ``limit`` deep."""
    level: list[Any] = [value] if type(value) in _CONTAINERS else []
    for _ in range(limit):
        if not level:
            return
        level = [
            inner
            for item in level
            for inner in cast("Iterable[Any]", item.values() if type(item) is dict else item)
            if type(inner) in _CONTAINERS
        ]
    if level:
        raise _too_deep()


def _by_orjson(value: object) -> msgspec.Raw:
    """What msgspec does not know: fragments and NumPy's arrays."""
    with suppress(TypeError):
        return msgspec.Raw(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    raise TypeError(f"{type(value).__name__} is not JSON")


_CONTAINERS = frozenset({dict, list})
_EXACT = msgspec.json.Encoder(enc_hook=_by_orjson)


def _utf8(raw: bytes) -> bytes:
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8":
        return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _n_values(text: bytes, enough: int) -> int:
    """A bound on the number of values; where it is above ``enough``, one that skips strings."""
    count = sum(text.count(separator) for separator in _SEPARATORS)
    if count <= enough:
        return count
    outside = _outside_strings(text)
    return sum(outside.count(separator) for separator in _SEPARATORS)


def has_long_number(text: bytes) -> bool:
    """Does a run of more than ``MAX_DIGITS`` digits stand in ``text``, in a string or not?"""
    return _LONG_RUN in text.translate(_DIGITS_AS_0)


def _outside_strings(text: bytes) -> bytes:
    """``text`` without its strings."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # each quote left is a string's end
    characters = np.frombuffer(plain, dtype=np.uint8)
    in_string = np.logical_xor.accumulate(characters == ord('"'))
    return characters[~in_string].tobytes()


def _too_deep() -> RequestError:
    return _refused(f"objects and lists more than {MAX_DEPTH} deep; flatten it")


def _refused(what: str) -> RequestError:
    return RequestError(f"the body holds {what}", code="body_too_complex")

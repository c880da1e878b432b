"""Arguments in the form in which a policy compares them: what makes two calls near-duplicates.

It starts from the canonical form (`entrogate.wire.canonical`), in which key order, spacing and the
writing of numbers do not matter any more.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import Any, Protocol, cast

import msgspec

from entrogate.wire.canonical import exact_number

MAX_DEPTH = 64
_SEPARATORS = (b",", b"[", b"{")
_DECODER = msgspec.json.Decoder(float_hook=Decimal)  # canonical already: read as they are written
_SORTED = msgspec.json.Encoder(order="sorted", decimal_format="number")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_NUMBER_LENGTH = 64


class Rules(Protocol):
    """What a policy says of one tool (`gate.schema.Normalise`)."""

    @property
    def case(self) -> bool:
        """Texts are compared without regard to case."""
        ...

    @property
    def spaces(self) -> bool:
        """Spaces at either end of a text do not count, and a run of them is one."""
        ...

    @property
    def numbers(self) -> bool:
        """A text that is a number in JSON is that number."""
        ...

    @property
    def ignore(self) -> Collection[str]:
        """Keys that do not count: ``page``, or ``options.page`` for one inside an object."""
        ...


class Normaliser:
    """Brings arguments into one form, with bounded work over all that one request asks for.

    So many ``values`` and ``characters`` are read. What does not fit any more, or is nested deeper
    than `MAX_DEPTH`, keeps its canonical form: then it equals only what is identical.
    """

    __slots__ = ("_characters_left", "_values_left")

    def __init__(self, values: int = 20_000, characters: int = 2**20) -> None:
        self._values_left = values
        self._characters_left = characters

    def of(self, key: bytes, rules: Rules) -> bytes:
        """The form of a call with the key ``key`` (`wire.history.call_key`) under ``rules``."""
        start = int(key[: key.index(b":")]) + key.index(b":") + 1
        head, form = key[:start], key[start:]
        if form[:1] != b"=":
            return key  # not JSON, or too much of it
        n_values = sum(form.count(separator) for separator in _SEPARATORS)
        if n_values > self._values_left or len(form) > self._characters_left:
            return key
        self._values_left -= n_values
        self._characters_left -= len(form)
        try:
            value = _Walk(rules).value(_DECODER.decode(form[1:]), "", 0)
        except RecursionError:
            return key
        return head + b"=" + _SORTED.encode(value)


class _Walk:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._ignored = frozenset(rules.ignore)

    def value(self, value: Any, path: str, depth: int) -> Any:
        """``value``, which stands at ``path``, as it is compared."""
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return [self.value(item, path, depth + 1) for item in items]
        if isinstance(value, dict):
            return dict(self._items(cast("dict[str, Any]", value), path, depth))
        return value

    def _items(self, values: dict[str, Any], path: str, depth: int) -> Any:
        for key, value in values.items():
            here = f"{path}.{key}" if path else key
            if here not in self._ignored:
                yield key, self.value(value, here, depth + 1)

    def _text(self, text: str) -> str | int | Decimal:
        if self._rules.spaces:
            text = " ".join(text.split())
        if self._rules.numbers and len(text) <= _NUMBER_LENGTH and _NUMBER.fullmatch(text):
            return exact_number(text)
        return text.casefold() if self._rules.case else text

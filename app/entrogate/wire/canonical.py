"""One form for all texts of the same JSON: what makes two calls the same call.

Key order, spacing and escapes do not matter, nor how a number is written: 1, 1.0 and 1e0 are one.
Numbers are compared exactly, never as floats: two ids that differ in their twentieth digit are two.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from entrogate.wire.body import has_long_number

_NUMBERS = 20_000  # with a point or an exponent, that are read one by one
_VALUES = 100_000  # of any kind: a text of them becomes as many objects
_SEPARATORS = (b",", b"[", b"{")
_EXPANDED = 22  # trailing zeros that an exponent may stand for: 1e22 is the whole number
_SORTED = msgspec.json.Encoder(order="sorted", decimal_format="number")


class Canonical:
    """Turns texts into their one form, in time linear in their length.

    ``numbers``: so many with a point or an exponent are read, and so many ``values`` of any kind. A
    text with more of them than are left, or with a number too long, stands for itself: two writings
    of it are two calls then.
    """

    __slots__ = ("_decoder", "_left", "_values_left")

    def __init__(self, numbers: int = _NUMBERS, values: int = _VALUES) -> None:
        self._left = numbers
        self._values_left = values
        self._decoder = msgspec.json.Decoder(float_hook=self._number)

    def copy(self) -> Canonical:
        """One that has as much left."""
        return Canonical(self._left, self._values_left)

    def of(self, text: str) -> bytes:
        """The form of ``text``; of what is not JSON, the text itself. These are never equal."""
        raw = text.encode(errors="surrogatepass")
        n_values = sum(raw.count(separator) for separator in _SEPARATORS)
        if n_values > self._values_left or has_long_number(raw):
            return b"~" + raw
        self._values_left -= n_values
        try:
            return b"=" + _SORTED.encode(self._decoder.decode(raw))
        except (ValueError, ArithmeticError, RecursionError):
            return b"~" + raw

    def _number(self, text: str) -> int | Decimal:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many numbers")
        return exact_number(text)


def exact_number(text: str) -> int | Decimal:
    """A number in JSON, as sign, digits without zeros at either end, and exponent.

    A value has one form, except for whole numbers of more than 22 digits that are written without
    a point and an exponent.
    """
    if text.lstrip("-").isdecimal():
        return int(text)
    mantissa, _, power = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    padded = (whole + fraction).lstrip("0")
    digits = padded.rstrip("0")
    if not digits:
        return 0
    exponent = int(power or "0") - len(fraction) + len(padded) - len(digits)
    sign = "-" if mantissa.startswith("-") else ""
    if 0 <= exponent <= _EXPANDED:
        return int(sign + digits + "0" * exponent)
    return Decimal(f"{sign}{digits}e{exponent}")

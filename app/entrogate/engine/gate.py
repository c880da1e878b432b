"""The gate before a tool call: a policy as a few numbers, and the state of one choice.

The gateway compiles the policy and the request's draw into `GateNumbers`, so what is decided here
depends on the logits and these numbers alone: every tensor-parallel rank decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from entrogate.segments.spans import starts_in_reasoning

FORMAT = 1
STATISTICS = (
    "entropy_max",
    "entropy_mean",
    "entropy_tail_mean",
    "entropy_last_window",
    "margin_mean",
    "margin_min",
)
_TAIL_SHARE = 0.1
_LAST_WINDOW = 8
_FIXED = 10  # numbers before the blank ids
_MAX_BLANKS = 64
_LARGEST = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class GateNumbers:
    """A policy compiled for one request; see docs/engine.md.

    ``suppress_certain`` and ``suppress_uncertain`` say what becomes of a call when the statistic is
    on the certain side of ``threshold`` and when it is not (exploring may turn either round).
    ``force_above`` is the value above which an answer becomes a call (inf: never). ``blank_ids``
    are tokens that stand between the reasoning and the choice (line breaks).
    """

    call_id: int
    think_open_id: int
    think_close_id: int
    statistic: int  # index in STATISTICS
    threshold: float
    min_tokens: int
    suppress_certain: bool
    suppress_uncertain: bool
    force_above: float
    blank_ids: frozenset[int]

    def pack(self) -> list[float]:
        """As the list of numbers that ``vllm_xargs`` can carry."""
        return [
            FORMAT,
            self.call_id,
            self.think_open_id,
            self.think_close_id,
            self.statistic,
            self.threshold,
            self.min_tokens,
            self.suppress_certain,
            self.suppress_uncertain,
            self.force_above if math.isfinite(self.force_above) else -1.0,
            *sorted(self.blank_ids),
        ]


def unpack(numbers: object, vocab_size: int) -> GateNumbers:
    """The inverse of `GateNumbers.pack`; ValueError says what is wrong with whatever came."""
    if not isinstance(numbers, list | tuple):
        raise ValueError("entrogate_gate is not a list of numbers")
    items = cast("Sequence[object]", numbers)
    if not _FIXED <= len(items) <= _FIXED + _MAX_BLANKS or items[0] != FORMAT:
        raise ValueError(
            f"entrogate_gate wants format {FORMAT} and {_FIXED} to {_FIXED + _MAX_BLANKS} numbers"
        )
    last = vocab_size - 1
    force_above = _finite(items[9])
    return GateNumbers(
        call_id=_whole(items[1], last),
        think_open_id=_whole(items[2], last, least=-1),
        think_close_id=_whole(items[3], last, least=-1),
        statistic=_whole(items[4], len(STATISTICS) - 1),
        threshold=_finite(items[5]),
        min_tokens=_whole(items[6], 2**31),
        suppress_certain=bool(_whole(items[7], 1)),
        suppress_uncertain=bool(_whole(items[8], 1)),
        force_above=math.inf if force_above < 0 else force_above,
        blank_ids=frozenset(_whole(n, last) for n in items[_FIXED:]),
    )


def _finite(value: object) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"entrogate_gate has a {type(value).__name__} where a number belongs")
    if not abs(value) < _LARGEST:
        raise ValueError(f"entrogate_gate has a number that is not below {_LARGEST:g}")
    return float(value)


def _whole(value: object, most: int, *, least: int = 0) -> int:
    """``vllm_xargs`` may have turned integers and flags into floats."""
    number = _finite(value)
    if not least <= number <= most or number != int(number):
        raise ValueError(f"entrogate_gate: {number:g} is not a whole number of {least} to {most}")
    return int(number)


@dataclass(slots=True)
class GateState:
    """What the gate remembers of one choice while it is decoded."""

    numbers: GateNumbers
    thinking: bool  # begins true where the prompt ended inside an open think marker
    thought: bool = False  # there was a reasoning span
    called: bool = False  # a call was opened: nothing is left to decide
    blank: bool = True  # only blanks since the reasoning
    reasoning: list[float] = field(default_factory=list[float])
    text: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self.thought = self.thinking

    @classmethod
    def begin(cls, numbers: GateNumbers, prompt_token_ids: Sequence[int]) -> Self:
        """The state before the first token."""
        starts = starts_in_reasoning(
            prompt_token_ids, numbers.think_open_id, numbers.think_close_id
        )
        return cls(numbers, starts)

    def take(self, token_id: int, entropy: float, margin: float) -> None:
        """One more sampled token of the choice, with what was measured where it was sampled."""
        numbers = self.numbers
        if token_id == numbers.call_id:
            self.called = True
        elif token_id == numbers.think_open_id:
            self.thinking = self.thought = True
        elif token_id == numbers.think_close_id:
            self.thinking, self.blank = False, True
        else:
            measured = margin if numbers.statistic >= 4 else entropy
            (self.reasoning if self.thinking else self.text).append(measured)
            self.blank = self.blank and token_id in numbers.blank_ids

    @property
    def n_tokens(self) -> int:
        return len(self._segment)

    @property
    def _segment(self) -> list[float]:
        return self.reasoning or self.text

    def value(self) -> float:
        """The statistic over the segment so far, nan without tokens."""
        values = self._segment
        if not values:
            return math.nan
        match STATISTICS[self.numbers.statistic]:
            case "entropy_max":
                return max(values)
            case "entropy_tail_mean":
                count = max(1, math.ceil(_TAIL_SHARE * len(values)))
                return math.fsum(sorted(values)[-count:]) / count
            case "entropy_last_window":
                last = values[-_LAST_WINDOW:]
                return math.fsum(last) / len(last)
            case "margin_min":
                return min(values)
            case _:
                return math.fsum(values) / len(values)

    def suppresses(self) -> bool:
        """Is a call that would begin with the next token to be suppressed?"""
        numbers = self.numbers
        if self.called or self.n_tokens < numbers.min_tokens:
            return False
        value = self.value()
        if math.isnan(value):
            return False
        above = numbers.statistic >= 4
        certain = value > numbers.threshold if above else value < numbers.threshold
        return numbers.suppress_certain if certain else numbers.suppress_uncertain

    def may_force(self) -> bool:
        """Would an answer that begins with the next token become a call?"""
        numbers = self.numbers
        if self.called or self.thinking or not self.thought or not self.blank:
            return False
        return self.n_tokens >= numbers.min_tokens and self.value() > numbers.force_above

"""The gate before a tool call: a policy as a few numbers, and the state of one choice.

The gateway compiles the policy and the request's draw into `GateNumbers`, so what is decided here
depends on the logits and these numbers alone: every tensor-parallel rank decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

from entrogate.entropy.statistics import STATISTICS as FUNCTIONS
from entrogate.segments.online import SegmentSoFar
from entrogate.segments.spans import Markers, starts_in_reasoning

FORMAT = 3
_PROBABILITY = "p_tool_call"  # of the next token, not over those of the segment
STATISTICS = (*FUNCTIONS, _PROBABILITY)
_MARGINS = frozenset({STATISTICS.index("margin_mean"), STATISTICS.index("margin_min")})
_LOGPROB = STATISTICS.index("logprob_sum")
_CERTAIN_ABOVE = _MARGINS | {_LOGPROB}
_FIXED = 12  # numbers before the blank ids
_MAX_IDS = 256  # blank and control ids together
_LARGEST = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class GateNumbers:
    """A policy compiled for one request; see docs/engine.md.

    ``suppress_certain`` and ``suppress_uncertain`` say what becomes of a call when the statistic is
    on the certain side of ``threshold`` and when it is not (exploring may turn either round).
    ``force_above`` is the value above which an answer becomes a call (inf: never). ``blank_ids``
    are tokens that stand between the reasoning and the choice (line breaks), ``control_ids`` those
    that are never text. Of the markers, -1 is one that the model does not have.
    """

    call_id: int
    call_close_id: int
    think_open_id: int
    think_close_id: int
    statistic: int  # index in STATISTICS
    threshold: float
    min_tokens: int
    suppress_certain: bool
    suppress_uncertain: bool
    force_above: float
    blank_ids: frozenset[int]
    control_ids: frozenset[int]

    @property
    def markers(self) -> Markers:
        """What cuts the turn into spans, as in the gateway."""
        return Markers(
            think_open=self.think_open_id,
            think_close=self.think_close_id,
            call_open=self.call_id,
            call_close=self.call_close_id,
            end=self.control_ids,
        )

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
            self.call_close_id,
            len(self.blank_ids),
            *sorted(self.blank_ids),
            *sorted(self.control_ids),
        ]


def unpack(numbers: object, vocab_size: int) -> GateNumbers:
    """The inverse of `GateNumbers.pack`; ValueError says what is wrong with whatever came."""
    if not isinstance(numbers, list | tuple):
        raise ValueError("entrogate_gate is not a list of numbers")
    items = cast("Sequence[object]", numbers)
    if not _FIXED <= len(items) <= _FIXED + _MAX_IDS or items[0] != FORMAT:
        raise ValueError(
            f"entrogate_gate wants format {FORMAT} and {_FIXED} to {_FIXED + _MAX_IDS} numbers"
        )
    last = vocab_size - 1
    force_above = _finite(items[9])
    controls_at = _FIXED + _whole(items[11], len(items) - _FIXED)
    return GateNumbers(
        call_id=_whole(items[1], last),
        think_open_id=_whole(items[2], last, least=-1),
        think_close_id=_whole(items[3], last, least=-1),
        call_close_id=_whole(items[10], last, least=-1),
        statistic=_whole(items[4], len(STATISTICS) - 1),
        threshold=_finite(items[5]),
        min_tokens=_whole(items[6], 2**31),
        suppress_certain=bool(_whole(items[7], 1)),
        suppress_uncertain=bool(_whole(items[8], 1)),
        force_above=math.inf if force_above < 0 else force_above,
        blank_ids=frozenset(_whole(n, last) for n in items[_FIXED:controls_at]),
        control_ids=frozenset(_whole(n, last) for n in items[controls_at:]),
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


class GateState:
    """What the gate remembers of one choice while it is decoded.

    ``starts`` says that the prompt ended inside an open think marker.
    """

    def __init__(self, numbers: GateNumbers, starts: bool) -> None:
        self.numbers = numbers
        self.segment = SegmentSoFar(numbers.markers, thinking=starts)
        self._blank = True  # only blanks since the reasoning

    @classmethod
    def begin(cls, numbers: GateNumbers, prompt_token_ids: Sequence[int]) -> Self:
        """The state before the first token."""
        return cls(
            numbers,
            starts_in_reasoning(prompt_token_ids, numbers.think_open_id, numbers.think_close_id),
        )

    def take(self, token_id: int, entropy: float, margin: float, logprob: float) -> None:
        """One more sampled token of the choice, with what was measured where it was sampled."""
        numbers = self.numbers
        value = logprob if numbers.statistic == _LOGPROB else entropy
        self.segment.take(token_id, margin if numbers.statistic in _MARGINS else value)
        if token_id == numbers.think_close_id:
            self._blank = True
        elif token_id != numbers.think_open_id:
            self._blank = self._blank and token_id in numbers.blank_ids

    @property
    def n_tokens(self) -> int:
        """Of the segment so far."""
        return len(self.segment.values)

    @property
    def by_probability(self) -> bool:
        """Does the probability of the call itself decide, which only the next logits tell?"""
        return STATISTICS[self.numbers.statistic] == _PROBABILITY

    def value(self, p_tool_call: float = math.nan) -> float:
        """The statistic over the segment so far, nan without tokens or with unknown ones.

        ``p_tool_call`` is the probability that the next token opens a call.
        """
        if self.by_probability:
            return p_tool_call if self.segment.values else math.nan
        values = self.segment.values
        unknown = math.isnan if self.numbers.statistic in _MARGINS else _unbounded
        if not values or any(map(unknown, values)):
            return math.nan
        return FUNCTIONS[STATISTICS[self.numbers.statistic]](values)

    @property
    def decides(self) -> bool:
        """Is it early enough, and the segment long enough, to decide about a call?"""
        return not self.segment.called and self.n_tokens >= self.numbers.min_tokens

    def suppresses(self, p_tool_call: float) -> bool:
        """Is a call to be suppressed that begins with the next token, so probable?"""
        numbers = self.numbers
        if not self.decides:
            return False
        value = self.value(p_tool_call)
        if math.isnan(value):
            return False
        above = numbers.statistic in _CERTAIN_ABOVE
        certain = value > numbers.threshold if above else value < numbers.threshold
        return numbers.suppress_certain if certain else numbers.suppress_uncertain

    def may_force(self) -> bool:
        """Would an answer that begins with the next token become a call?"""
        numbers, segment = self.numbers, self.segment
        if segment.called or segment.thinking or not segment.thought or not self._blank:
            return False
        if self.by_probability or self.n_tokens < numbers.min_tokens:
            return False
        return self.value() > numbers.force_above


def _unbounded(value: float) -> bool:
    return not math.isfinite(value)

"""The segment of a turn while it is decoded: one token at a time, by the rule of `spans`.

Up to the first call, what is kept here are the values of the tokens that `spans.find_spans` and
`spans.reasoning_ranges` name for the same tokens: the gate in the engine and the one in the gateway
measure one segment. A property test holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from entrogate.segments.spans import Markers


@dataclass(slots=True)
class SegmentSoFar:
    """Values of the tokens of the reasoning and of the other text, until a call opens.

    ``thinking``: the next token is reasoning; true from the start where the prompt ended inside an
    open think marker. ``thought``: there was a reasoning span. ``called``: a call was opened,
    nothing is taken any more.
    """

    markers: Markers
    thinking: bool = False
    thought: bool = False
    called: bool = False
    _reasoning: list[float] = field(default_factory=list[float])
    _text: list[float] = field(default_factory=list[float])
    _n_opening: int = 0  # text tokens before the first marker that ends a span of text
    _opening: bool = True
    _marked: bool = False  # a think marker was seen, or the prompt had one

    def __post_init__(self) -> None:
        self.thought = self._marked = self.thinking
        self._opening = not self.thinking

    def take(self, token_id: int, value: float) -> bool:
        """One more sampled token; True where it is text of the segment and no marker."""
        markers = self.markers
        if self.called:
            return False
        if token_id == markers.call_open:
            self.called, self.thinking, self._opening = True, False, False
        elif token_id == markers.think_open:
            self.thinking = self.thought = self._marked = True
            self._opening = False
        elif token_id == markers.think_close:
            if not self._marked:
                self._begin_in_reasoning()
            self.thinking, self._opening = False, False
        elif token_id == markers.call_close:
            self.thinking, self._opening = False, False
        elif token_id not in markers.end:
            (self._reasoning if self.thinking else self._text).append(value)
            self._n_opening += self._opening
            return True
        return False

    @property
    def values(self) -> list[float]:
        """Of the segment's tokens: the reasoning, else the text."""
        return self._reasoning or self._text

    def _begin_in_reasoning(self) -> None:
        """A closing marker without an opening one: the turn began in reasoning."""
        self._marked = self.thought = True
        self._reasoning = self._text[: self._n_opening]
        del self._text[: self._n_opening]

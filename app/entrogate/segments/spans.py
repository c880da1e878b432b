"""Which tokens of a turn are reasoning, and which only look like it.

The marker tokens of the chat template cut a turn into spans. Nothing is decoded: a marker is one
token id, so text that merely spells a marker cuts nothing. Whitespace belongs to the span it stands
in.

- CONTROL: the markers themselves, end-of-turn tokens, the stop token.
- CALL: the tokens between the call markers. They are JSON, structured and of low entropy whatever
  the model knows, so they belong to no reasoning segment. An unclosed call runs to the end of the
  turn. A call that opens inside reasoning ends the reasoning.
- REASONING: the tokens between the think markers; an unclosed one runs to the end of the turn. In a
  turn without any, the text before the first call: what the model said to itself before it called.
- ANSWER: all other text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from entrogate.types import IntArray, Span, SpanKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Token ids of the template's markers; None where the model has no such token.

    ``end`` are the ids that end a turn or that are control tokens otherwise (never text).
    """

    think_open: int | None = None
    think_close: int | None = None
    call_open: int | None = None
    call_close: int | None = None
    end: frozenset[int] = frozenset()

    def ids(self) -> frozenset[int]:
        """All of them."""
        named = (self.think_open, self.think_close, self.call_open, self.call_close)
        return self.end.union(i for i in named if i is not None)


CALL_MARKER_MISSING = "call_marker_missing"
_PROMPT_END = 4  # tokens: the longest of what a template opens an answer with


def starts_in_reasoning(
    prompt_token_ids: Sequence[int] | IntArray, think_open: int | None, think_close: int | None
) -> bool:
    """Does the prompt end inside an open think marker?

    True where the last marker among the prompt's last tokens opens: a template that puts an empty
    ``<think></think>`` there has closed it. Further back a marker may stand in somebody's text.
    """
    end = prompt_token_ids[-_PROMPT_END:]
    for token in reversed(end.tolist() if isinstance(end, np.ndarray) else end):
        if token == think_close:
            return False
        if token == think_open:
            return True
    return False


def find_spans(
    token_ids: Sequence[int] | IntArray,
    markers: Markers,
    *,
    stopped: bool,
    starts_in_reasoning: bool = False,
) -> tuple[Span, ...]:
    """The spans of one turn's sampled tokens: in order, without gaps, none empty.

    ``stopped``: the engine ended the turn at a stop token, so the last id is CONTROL whatever it
    is. ``starts_in_reasoning``: the prompt ended inside an open think marker. It need not be given
    for a finished turn: a closing marker without an opening one says the same.
    """
    ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
    special = markers.ids()
    found = [(i, token) for i, token in enumerate(ids) if token in special]
    if stopped and ids and (not found or found[-1][0] != len(ids) - 1):
        found.append((len(ids) - 1, ids[-1]))
    thinking = starts_in_reasoning or _closes_first(found, markers)
    stop_at = len(ids) - 1 if stopped else None
    cut = _cut(found, len(ids), markers, thinking=thinking, stop_at=stop_at)
    return tuple(_merge([s for s in _name_text(list(cut)) if s.start < s.stop]))


def reasoning_ranges(spans: Sequence[Span]) -> tuple[tuple[int, int], ...]:
    """[start, stop) of the tokens that make the segment: the reasoning, else the answer."""
    for kind in (SpanKind.REASONING, SpanKind.ANSWER):
        ranges = tuple((s.start, s.stop) for s in spans if s.kind is kind)
        if ranges:
            return ranges
    return ()


def decision_position(spans: Sequence[Span]) -> int | None:
    """Where the model chose between calling and answering.

    The marker that opens the first call; without a call the first token of the answer; None where
    the turn has neither.
    """
    for before, span in zip((None, *spans), spans, strict=False):
        if span.kind is SpanKind.CALL:
            opened = before is not None and before.kind is SpanKind.CONTROL
            return span.start - 1 if opened else span.start
    return next((s.start for s in spans if s.kind is SpanKind.ANSWER), None)


def call_gap(spans: Sequence[Span], markers: Markers, *, called: bool) -> str | None:
    """Why the segment of a finished turn cannot be told from its call; None where it can.

    ``called``: the server parsed a call out of the turn. Where no single token opens a call, or a
    call came without it (a forced tool is often written as bare JSON) and the model did not reason
    between markers, the call's tokens pass for text: measured with them, the segment is wrong.
    """
    kinds = {span.kind for span in spans}
    if not called or (markers.call_open is not None and SpanKind.CALL in kinds):
        return None
    if markers.call_open is not None and SpanKind.REASONING in kinds:
        return None
    return CALL_MARKER_MISSING


def _closes_first(found: Sequence[tuple[int, int]], markers: Markers) -> bool:
    thinks = (i for _, i in found if i in (markers.think_open, markers.think_close))
    return markers.think_close is not None and next(thinks, None) == markers.think_close


def _cut(
    found: Sequence[tuple[int, int]],
    length: int,
    markers: Markers,
    *,
    thinking: bool,
    stop_at: int | None,
) -> Iterator[Span]:
    """Text between markers takes the kind that the last marker opened."""
    kind = SpanKind.REASONING if thinking else SpanKind.ANSWER
    start = 0
    for position, marker in found:
        in_arguments = kind is SpanKind.CALL and marker in (markers.think_open, markers.think_close)
        if in_arguments and position != stop_at:
            continue
        yield Span(kind=kind, start=start, stop=position)
        yield Span(kind=SpanKind.CONTROL, start=position, stop=position + 1)
        start = position + 1
        if marker == markers.think_open:
            kind = SpanKind.REASONING
        elif marker == markers.call_open:
            kind = SpanKind.CALL
        elif marker in (markers.call_close, markers.think_close):
            kind = SpanKind.ANSWER
    yield Span(kind=kind, start=start, stop=length)


def _name_text(spans: list[Span]) -> list[Span]:
    """Without think markers, the text before the first call (open is enough) is the reasoning."""
    kinds = [s.kind for s in spans]
    reasons = any(s.kind is SpanKind.REASONING and s.start < s.stop for s in spans)
    if reasons or SpanKind.CALL not in kinds:
        return spans
    call = kinds.index(SpanKind.CALL)
    return [
        Span(kind=SpanKind.REASONING, start=s.start, stop=s.stop)
        if i < call and s.kind is SpanKind.ANSWER
        else s
        for i, s in enumerate(spans)
    ]


def _merge(spans: Sequence[Span]) -> Iterator[Span]:
    """Join neighbours of one kind."""
    held: Span | None = None
    for span in spans:
        if held is not None and held.kind is span.kind:
            held = Span(kind=held.kind, start=held.start, stop=span.stop)
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held

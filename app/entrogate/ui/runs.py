"""Sampled tokens as runs of equal colour: neighbours of one level are one element."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entrogate.store.read.rows import SpanRow
from entrogate.store.read.slices import SlicedTokens

LEVELS = (0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Nats from which on a token has the next darker colour; level 0 lies below the first."""
UNKNOWN = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring tokens of one kind and one level of entropy."""

    kind: str
    level: str  # 0 to 7, or x: nothing is known
    text: str
    title: str  # what a reader is told of them


def runs_of(spans: Sequence[SpanRow], tokens: SlicedTokens, texts: Mapping[int, str]) -> list[Run]:
    """A slice of a turn's tokens with their entropy; a token without a text is shown by its id.

    ``spans`` are those of the whole turn, as `Trajectory` has them.
    """
    ids, lower, upper = tokens.token_ids, tokens.entropy_lower, tokens.entropy_upper
    runs: list[Run] = []
    for span in spans:
        start = max(0, span.start - tokens.start)
        end = min(len(ids), span.stop - tokens.start)
        while start < end:
            level = level_of(upper[start])
            stop = start + 1
            while stop < end and level_of(upper[stop]) == level:
                stop += 1
            text = "".join(texts.get(id_, f"⟨{id_}⟩") for id_ in ids[start:stop])
            title = _title(lower[start:stop], upper[start:stop])
            runs.append(Run(kind=span.kind, level=level, text=text, title=title))
            start = stop
    return runs


def level_of(entropy: float | None) -> str:
    """The colour of an upper bound in nats."""
    return UNKNOWN if entropy is None else str(bisect_right(LEVELS, entropy))


def _title(lower: Sequence[float | None], upper: Sequence[float | None]) -> str:
    known = [(a, b) for a, b in zip(lower, upper, strict=True) if a is not None and b is not None]
    count = "1 token" if len(upper) == 1 else f"{len(upper)} tokens"
    if not known:
        return f"{count}, entropy unknown"
    least, most = min(a for a, _ in known), max(b for _, b in known)
    value = f"{most:.2f}" if f"{least:.2f}" == f"{most:.2f}" else f"{least:.2f} to {most:.2f}"
    return f"{count}, {value} nats"

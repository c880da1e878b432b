"""The overview's line for each fuse, from the figures that the metrics show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entrogate.observe.fuses import FuseFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseLine:
    """One fuse as text; blown ones are highlighted."""

    tool: str
    blown: bool
    text: str


def fuse_lines(fuses: Sequence[FuseFigures]) -> list[FuseLine]:
    """One line per fuse, blown ones first."""
    lines = [FuseLine(tool=each.tool, blown=each.blown, text=_text(each)) for each in fuses]
    return sorted(lines, key=lambda line: not line.blown)


def _text(fuse: FuseFigures) -> str:
    state = "blown: its calls are only observed" if fuse.blown else "armed"
    if fuse.estimate is None:
        audits = "No audits judged yet"
    else:
        share = f"{fuse.estimate:.1%}{_bounds(fuse)}"
        audits = f"{fuse.losses} of {fuse.audits} audits were losses ({share})"
    waiting = f"; {fuse.waiting} not judged yet" if fuse.waiting else ""
    policy = f"policy {fuse.policy} {fuse.version}"
    return f"{state} ({policy}). {audits}, {fuse.max_loss:.1%} allowed{waiting}."


def _bounds(fuse: FuseFigures) -> str:
    if fuse.lower is None or fuse.upper is None:
        return ""
    return f"; bounds {fuse.lower:.1%} to {fuse.upper:.1%}"

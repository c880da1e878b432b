"""The overview's line on each fuse, from the figures that metrics show as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entrogate.observe.fuses import FuseFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseLine:
    """One fuse in words; ``blown`` ones are to be noticed."""

    tool: str
    blown: bool
    text: str


def fuse_lines(fuses: Sequence[FuseFigures]) -> list[FuseLine]:
    """One line a fuse, those that are blown first."""
    lines = [FuseLine(tool=each.tool, blown=each.blown, text=_text(each)) for each in fuses]
    return sorted(lines, key=lambda line: not line.blown)


def _text(fuse: FuseFigures) -> str:
    state = "blown: its calls are only observed" if fuse.blown else "armed"
    limit = f"at most {fuse.max_loss:.1%} may be lost"
    waiting = f"; {fuse.waiting} not judged yet" if fuse.waiting else ""
    if fuse.estimate is None:
        audits = f"No audit is judged yet, {limit}"
    else:
        audits = f"{fuse.losses} of {fuse.audits} audits lost ({fuse.estimate:.1%}{_bounds(fuse)})"
        audits += f", {limit}"
    return f"{state} under {fuse.policy} {fuse.version}. {audits}{waiting}."


def _bounds(fuse: FuseFigures) -> str:
    if fuse.lower is None or fuse.upper is None:
        return ""
    return f"; bounds {fuse.lower:.1%} to {fuse.upper:.1%}"

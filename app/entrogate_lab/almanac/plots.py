"""Plots as SVG text: no library, colours from the page's own style sheet (light and dark)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from entrogate_lab.almanac.exhibits import Change, Trace

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 18, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float
    style: str  # a class of the style sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """Maps data to the pixels of a plot with one vertical axis."""

    width: int
    height: int
    low: float
    high: float

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM), 1)

    def x(self, share: float) -> float:
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def axis(self, unit: str, percent: bool = False) -> str:
        parts: list[str] = []
        for tick in ticks(self.low, self.high):
            text = f"{tick:.0%}" if percent else f"{tick:g}"
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y}" y2="{y}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
            )
        parts.append(f'<text x="{_LEFT}" y="12">{escape(unit)}</text>')
        return "".join(parts)

    def svg(self, title: str, *parts: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from ``low`` to ``high``, about ``about`` of them."""
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def entropy_plot(trace: Trace) -> str:
    """Entropy by sampled token; the reasoning segments are shaded, turns are set apart."""
    lengths = [len(turn.entropy_upper) for turn in trace.turns]
    total = max(1, sum(lengths))
    upper = [v for turn in trace.turns for v in turn.entropy_upper if v is not None]
    frame = _Frame(width=900, height=260, low=0.0, high=max([1.0, *upper]) * 1.05)
    parts = [frame.axis("nats")]
    start = 0
    for number, (turn, length) in enumerate(zip(trace.turns, lengths, strict=True), start=1):

        def x(position: float, start: int = start) -> float:
            return frame.x((start + position) / total)

        for first, last in turn.reasoning:
            parts.append(
                f'<rect class="segment" x="{x(first)}" y="{_TOP}" '
                f'width="{x(last) - x(first):.1f}" height="{frame.height - _TOP - _BOTTOM}"/>'
            )
        width = max(1.0, (x(1) - x(0)) * 0.8)
        for position, (low, high) in enumerate(
            zip(turn.entropy_lower, turn.entropy_upper, strict=True)
        ):
            if low is None or high is None:
                continue
            span = f"{low:.3f}" if high - low < 0.0005 else f"{low:.3f} to {high:.3f}"
            parts.append(
                f'<rect class="range" x="{x(position + 0.1)}" y="{frame.y(high)}" '
                f'width="{width:.1f}" height="{max(1.5, frame.y(0) - frame.y(high)):.1f}">'
                f"<title>turn {number}, token {position}: {span} nats</title></rect>"
            )
        parts.append(f'<line class="turn" x1="{x(0)}" x2="{x(0)}" y1="{_TOP}" y2="{frame.y(0)}"/>')
        parts.append(f'<text x="{x(0) + 3}" y="{frame.height - 22}">turn {number}</text>')
        start += length
    parts.append(
        f'<text x="{frame.width - _RIGHT}" y="{frame.height - 6}" text-anchor="end">'
        "sampled tokens; shaded: reasoning segments</text>"
    )
    return frame.svg("Entropy by token of one trajectory", *parts)


def bar_plot(title: str, unit: str, bars: Sequence[Bar], *, percent: bool = False) -> str:
    """Bars with their 95 % intervals and values."""
    top = 1.0 if percent else max([0.1, *(bar.high for bar in bars)]) * 1.12
    frame = _Frame(width=440, height=250, low=0.0, high=top)
    parts = [frame.axis(unit, percent)]
    slot = 1 / max(1, len(bars))
    for index, bar in enumerate(bars):
        left, right = frame.x((index + 0.22) * slot), frame.x((index + 0.78) * slot)
        middle = (left + right) / 2
        text = f"{bar.value:.1%}" if percent else f"{bar.value:.2f}"
        interval = (
            f"{bar.low:.1%} to {bar.high:.1%}" if percent else f"{bar.low:.2f} to {bar.high:.2f}"
        )
        top_y, low_y, high_y = frame.y(bar.value), frame.y(bar.low), frame.y(bar.high)
        parts.append(
            f'<rect class="{bar.style}" x="{left}" y="{top_y}" width="{right - left:.1f}" '
            f'height="{frame.y(0) - top_y:.1f}"><title>{escape(bar.label)}: {text} '
            f"(95 %: {interval})</title></rect>"
            f'<path class="whisker" d="M{middle} {low_y}V{high_y}M{middle - 5} {low_y}h10'
            f'M{middle - 5} {high_y}h10"/>'
            f'<text x="{middle + 9}" y="{top_y - 5}">{text}</text>'
            f'<text x="{middle}" y="{frame.height - 22}" text-anchor="middle">'
            f"{escape(bar.label)}</text>"
        )
    return frame.svg(title, *parts)


def change_plot(changes: Sequence[Change]) -> str:
    """Every ΔH as a dot, by the outcome of its task; the line is the median."""
    deltas = [change.delta for change in changes]
    frame = _Frame(
        width=440, height=250, low=min([-1.0, *deltas]) * 1.05, high=max([1.0, *deltas]) * 1.05
    )
    zero = frame.y(0)
    parts = [frame.axis("ΔH, nats")]
    parts.append(
        f'<line class="zero" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{zero}" y2="{zero}"/>'
    )
    for index, (correct, label) in enumerate(((True, "task solved"), (False, "task not solved"))):
        group = sorted(change.delta for change in changes if change.correct is correct)
        centre = 0.25 + 0.5 * index
        for rank, delta in enumerate(group):
            # Spread evenly by rank over the column, in a fixed scattered order.
            offset = ((rank * 0.618034) % 1 - 0.5) * 0.3
            parts.append(
                f'<circle class="{"good" if correct else "bad"}" r="2.5" '
                f'cx="{frame.x(centre + offset)}" cy="{frame.y(delta)}">'
                f"<title>{label}: ΔH {delta:+.3f} nats</title></circle>"
            )
        note = "no known ΔH"
        if group:
            median = (group[len(group) // 2] + group[(len(group) - 1) // 2]) / 2
            y = frame.y(median)
            parts.append(
                f'<line class="median" x1="{frame.x(centre - 0.17)}" '
                f'x2="{frame.x(centre + 0.17)}" y1="{y}" y2="{y}"/>'
            )
            note = f"{len(group)}, median {median:+.2f}"
        parts.append(
            f'<text x="{frame.x(centre)}" y="{frame.height - 22}" text-anchor="middle">'
            f"{label}</text>"
            f'<text x="{frame.x(centre)}" y="{frame.height - 6}" text-anchor="middle">{note}</text>'
        )
    return frame.svg("Entropy change of calls by outcome", *parts)

"""Charts as SVG, drawn once on the server; each stands beside a table with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 180, 48, 24, 8
_MOST_MARKS = 400
_MOST_NAMES = 16
_WIDEST_BAR = 64.0


def lines(points: Sequence[tuple[str, float]], *, label: str, least: float = 0.0) -> Markup:
    """Values in order, joined; the first and the last name stand below."""
    if not points:
        return Markup("")
    most = max(*(value for _, value in points), least + 1e-9)
    step = (_WIDTH - _LEFT) / max(1, len(points) - 1)
    at = [(_LEFT + n * step, _y(value, least, most)) for n, (_, value) in enumerate(points)]
    path = Markup(" ").join(Markup("{:.1f},{:.1f}").format(x, y) for x, y in at)
    drawn = Markup('<polyline class="line" points="{}"/>').format(path)
    names = (points[0][0], points[-1][0])
    return _svg(drawn, label, least, most, names)


def bars(points: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """A bar for each value, named below it; negative ones hang."""
    if not points:
        return Markup("")
    least, most = min(0.0, *(v for _, v in points)), max(0.0, *(v for _, v in points))
    if least == most:
        most = 1.0
    slot = (_WIDTH - _LEFT) / len(points)
    zero = _y(0.0, least, most)
    drawn = Markup("")
    for number, (name, value) in enumerate(points):
        width = min(slot * 0.6, _WIDEST_BAR)
        x, y = _LEFT + (number + 0.5) * slot - width / 2, _y(value, least, most)
        drawn += Markup(
            '<rect class="mark" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
        ).format(x, min(y, zero), width, max(1.0, abs(y - zero)))
        if len(points) <= _MOST_NAMES:
            drawn += _named(_LEFT + (number + 0.5) * slot, name)
    return _svg(drawn, label, least, most, ())


def stacks(
    points: Sequence[tuple[str, Sequence[float]]], *, parts: Sequence[str], label: str
) -> Markup:
    """A bar for each name, of one piece for each of ``parts``; these are explained above."""
    if not points:
        return Markup("")
    most = 1.15 * max(*(sum(values) for _, values in points), 1e-9)  # room for the names of parts
    slot = (_WIDTH - _LEFT) / len(points)
    width = min(slot * 0.6, _WIDEST_BAR)
    drawn = Markup("")
    for number, (name, values) in enumerate(points):
        middle = _LEFT + (number + 0.5) * slot
        below = 0.0
        for part, value in enumerate(values):
            if value <= 0:
                continue
            top = _y(below + value, 0.0, most)
            drawn += _piece(part, middle - width / 2, top, width, _y(below, 0.0, most) - top)
            below += value
        if len(points) <= _MOST_NAMES:
            drawn += _named(middle, name)
    for part, name in enumerate(parts):
        x = _LEFT + 8 + part * 90
        drawn += _piece(part, x, _TOP, 10, 10)
        drawn += Markup('<text x="{}" y="{}">{}</text>').format(x + 14, _TOP + 9, name)
    return _svg(drawn, label, 0.0, most, ())


def _piece(part: int, x: float, y: float, width: float, height: float) -> Markup:
    return Markup(
        '<rect class="part{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(part, x, y, width, height)


def _named(middle: float, name: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        middle, _HEIGHT - 6, name[:14]
    )


def bands(points: Sequence[tuple[str, float, float]], *, label: str) -> Markup:
    """An interval for each name, from its lower to its upper bound."""
    if not points:
        return Markup("")
    points = points[:_MOST_MARKS]
    most = max(*(upper for _, _, upper in points), 1e-9)
    slot = (_WIDTH - _LEFT) / len(points)
    drawn = Markup("")
    for number, (_, lower, upper) in enumerate(points):
        x = _LEFT + (number + 0.5) * slot
        top, bottom = _y(upper, 0.0, most), _y(lower, 0.0, most)
        drawn += Markup(
            '<line class="band" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
        ).format(x, top, bottom)
        drawn += Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
            x, (top + bottom) / 2
        )
    return _svg(drawn, label, 0.0, most, (points[0][0], points[-1][0]))


def _y(value: float, least: float, most: float) -> float:
    inner = _HEIGHT - _BOTTOM - _TOP
    return _TOP + inner * (1.0 - (value - least) / (most - least))


def _svg(drawn: Markup, label: str, least: float, most: float, names: Sequence[str]) -> Markup:
    bottom = _HEIGHT - _BOTTOM
    ends = Markup("")
    for x, anchor, name in zip((_LEFT, _WIDTH), ("start", "end"), names, strict=False):
        ends += Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            x, _HEIGHT - 6, anchor, name
        )
    return Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{label}">'
        '<line class="axis" x1="{left}" x2="{w}" y1="{bottom}" y2="{bottom}"/>'
        '<text x="{edge}" y="{top}" text-anchor="end">{most:.3g}</text>'
        '<text x="{edge}" y="{bottom}" text-anchor="end">{least:.3g}</text>{drawn}{ends}</svg>'
    ).format(
        w=_WIDTH, h=_HEIGHT, label=label, left=_LEFT, edge=_LEFT - 6, bottom=bottom, top=_TOP + 8,
        most=most, least=least, drawn=drawn, ends=ends,
    )  # fmt: skip

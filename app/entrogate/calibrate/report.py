"""A calibration as one HTML file: curves of risk against savings, AUCs, the table.

Everything is inside the file; it loads nothing and has no script.
"""

from __future__ import annotations

from html import escape

from entrogate.calibrate.result import Calibrated, Judged, Row
from entrogate.calibrate.samples import Log
from entrogate.calibrate.tables import (
    area,
    figures,
    left_out,
    ranked,
    saved_share,
    signal_name,
    verdict,
    whole_policy,
)

_COLOURS = (
    "#0f766e", "#b45309", "#1d4ed8", "#be185d", "#4d7c0f", "#7c3aed", "#0e7490", "#b91c1c",
    "#57534e", "#a16207", "#4338ca", "#15803d", "#9d174d", "#0369a1", "#c2410c", "#6d28d9",
    "#334155", "#65a30d",
)  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 360, 56, 44, 12
_BAR_WIDTH, _BAR_HEIGHT = 260, 16
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1917; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #d6d3d1; text-align: left;
  font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption { color: #57534e; }
svg text { font: 12px system-ui, sans-serif; fill: #44403c; }
.good { color: #15803d; } .bad { color: #b91c1c; }
"""


def report_html(found: Calibrated, log: Log) -> str:
    """The whole page."""
    options = found.options
    sections = "".join(_section(row) for row in found.rows)
    rest = "".join(f"<p>{escape(line)}</p>" for line in left_out(log) if line)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><title>Calibration</title>'
        f"<style>{_STYLE}</style></head><body>\n"
        "<h1>Calibration</h1>\n"
        f"<p>{escape(str(log.origin))}. {found.n} trajectories: signals chosen on"
        f" {found.n - found.certified_on}, thresholds certified on {found.certified_on}.</p>\n"
        f"<p>Promise: with confidence {1 - options.delta:.3g}, at most {options.max_loss:.3g} of"
        " all trajectories are right with their calls and wrong without a suppressed one.</p>\n"
        f"{_table(found)}{_whole(found)}{sections}{rest}\n</body></html>\n"
    )


def _table(found: Calibrated) -> str:
    heads = (
        "tool", "n", "with tool", "losses", "upper bound", "allowed", "gains", "signal",
        "threshold", "calls saved [95 %]", "verdict",
    )  # fmt: skip
    body = "".join(_table_row(row) for row in found.rows)
    return (
        "<table><tr>"
        + "".join(f"<th>{escape(head)}</th>" for head in heads)
        + f"</tr>{body}</table>\n"
    )


def _table_row(row: Row) -> str:
    cells = ("all" if row.tool is None else row.tool, *figures(row), saved_share(row))
    kind = "good" if row.certified else "bad"
    return (
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f'<td class="{kind}">{escape(verdict(row))}</td></tr>'
    )


def _whole(found: Calibrated) -> str:
    whole = found.total
    if whole is None:
        more = "" if found.needs is None else f" About {found.needs} more trajectories are needed."
        return f'<p class="bad">Nothing can be certified.{more}</p>\n'
    return f"<p>The whole policy on the certifying half: {escape(whole_policy(whole))}.</p>\n"


def _section(row: Row) -> str:
    """The curves and the AUCs of one tool, or of all together."""
    if not row.judged:
        return ""
    name = "All tools" if row.tool is None else f"Tool {row.tool}"
    order = ranked(row.judged)
    colours = {
        judged.signal.statistic: _COLOURS[at % len(_COLOURS)] for at, judged in enumerate(order)
    }
    curves = "".join(
        _line(judged, row, colours[judged.signal.statistic], top=_most(row)) for judged in order
    )
    bars = "".join(_bar(judged, colours[judged.signal.statistic]) for judged in order)
    return (
        f"<h2>{escape(name)}</h2>\n<figure>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img"'
        f' aria-label="Risk against savings">{_axes(row)}{curves}</svg>'
        "<figcaption>Trajectories lost against calls saved on the certifying half, one curve per"
        " signal. Dashed: the allowed loss; circle: the certified threshold. Only the chosen"
        " signal is certified; the others are for comparison.</figcaption></figure>\n"
        "<table><tr><th>signal</th><th>AUC for right answers without the call</th>"
        "<th>95 % interval</th>"
        f"<th>calls saved at the same promise (choosing half)</th></tr>{bars}</table>\n"
    )


def _most(row: Row) -> float:
    """The largest risk on the axis: that of the curves, or a bit more than what is allowed."""
    risks = [judged.certifying.losses.max() / max(1, row.n) for judged in row.judged]
    return max(1.5 * row.max_loss, *(float(risk) for risk in risks))


def _x(saved: float) -> float:
    return _LEFT + saved * (_WIDTH - _LEFT - 12)


def _y(risk: float, top: float) -> float:
    return _TOP + (1.0 - risk / top) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(row: Row) -> str:
    top = _most(row)
    base = _y(0.0, top)
    marks = "".join(
        f'<text x="{_x(share):.0f}" y="{base + 18:.0f}" text-anchor="middle">{share:.0%}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ) + "".join(
        f'<text x="{_LEFT - 6}" y="{_y(share * top, top) + 4:.0f}" text-anchor="end">'
        f"{share * top:.1%}</text>"
        for share in (0.0, 0.5, 1.0)
    )
    allowed = _y(row.max_loss, top)
    return (
        f'<path d="M{_LEFT} {_TOP}V{base:.1f}H{_WIDTH - 12}" fill="none" stroke="#a8a29e"/>'
        f'<path d="M{_LEFT} {allowed:.1f}H{_WIDTH - 12}" stroke="#b91c1c" stroke-dasharray="5 4"/>'
        f'<text x="{_WIDTH - 12}" y="{allowed - 5:.0f}" text-anchor="end">allowed'
        f" {row.max_loss:.2%}</text>{marks}"
        f'<text x="{(_WIDTH + _LEFT) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">calls'
        " saved</text>"
    )


def _line(judged: Judged, row: Row, colour: str, *, top: float) -> str:
    curve = judged.certifying
    points = [(_x(0.0), _y(0.0, top))] + [
        (_x(float(saved)), _y(float(losses) / max(1, curve.n), top))
        for saved, losses in zip(curve.saved, curve.losses, strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    chosen = row.signal is not None and judged.signal == row.signal
    line = (
        f'<polyline points="{path}" fill="none" stroke="{colour}"'
        f' stroke-width="{3 if chosen else 1.2}" opacity="{1 if chosen else 0.7}">'
        f"<title>{escape(signal_name(judged.signal))}</title></polyline>"
    )
    if not chosen or not row.certified:
        return line
    x, y = _x(row.saved.value), _y(row.losses / max(1, row.n), top)
    return f'{line}<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}" stroke="#fff"/>'


def _bar(judged: Judged, colour: str) -> str:
    """A table row with the AUC as a point on its interval, from 0 to 1, with a mark at 1/2."""
    found = judged.auc
    drawn = ""
    if found is not None:
        middle = _BAR_HEIGHT / 2
        drawn = (
            f'<path d="M{found.lower * _BAR_WIDTH:.1f} {middle}H{found.upper * _BAR_WIDTH:.1f}"'
            f' stroke="{colour}" stroke-width="3"/>'
            f'<circle cx="{found.value * _BAR_WIDTH:.1f}" cy="{middle}" r="5" fill="{colour}"/>'
        )
    return (
        f'<tr><td style="color:{colour}">{escape(signal_name(judged.signal))}</td>'
        f'<td><svg viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" width="{_BAR_WIDTH}">'
        f'<path d="M{_BAR_WIDTH / 2} 0V{_BAR_HEIGHT}" stroke="#d6d3d1"/>{drawn}</svg></td>'
        f"<td>{escape(area(found))}</td><td>{judged.chosen_saving:.1%}</td></tr>"
    )

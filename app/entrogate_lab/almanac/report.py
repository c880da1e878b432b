"""The demo's results as one table, a JSON file and a self-contained HTML page."""

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from entrogate_lab.almanac.exhibits import Change, Exhibits, Trace
from entrogate_lab.almanac.plots import Bar, bar_plot, change_plot, entropy_plot

_Json = dict[str, Any]
Row = tuple[str, ...]

_ROWS = (
    ("accuracy", "accuracy", "accuracy_ci", "{:.1%}"),
    ("calls per task", "calls_per_task", "calls_ci", "{:.2f}"),
    ("  needless", "needless_calls_per_task", None, "{:.2f}"),
    ("  repeated", "repeated_calls_per_task", None, "{:.2f}"),
    ("  least that suffice", "oracle_calls_per_task", None, "{:.2f}"),
    ("completion tokens", "completion_tokens", None, "{:,.0f}"),
    ("wasted tokens", "wasted_tokens", None, "{:,.0f}"),
    ("wall seconds", "wall_seconds", None, "{:.1f}"),
)


def table_rows(modes: _Json) -> list[Row]:
    """Head and rows: a figure, its value in each mode, and what the last mode changes."""
    names = list(modes)
    head = ("", *names, *(("change",) if len(names) > 1 else ()))
    rows: list[Row] = [head, ("tasks", *(str(modes[name]["tasks"]) for name in names))]
    for label, key, interval, form in _ROWS:
        cells = [_cell(modes[name], key, interval, form) for name in names]
        if len(names) > 1:
            cells.append(_change(key, modes[names[0]][key], modes[names[-1]][key]))
        rows.append((label, *cells))
    width = max(len(row) for row in rows)
    return [(*row, *[""] * (width - len(row))) for row in rows]


def text_table(modes: _Json) -> str:
    """The rows as aligned text."""
    rows = table_rows(modes)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _cell(figures: _Json, key: str, interval: str | None, form: str) -> str:
    text = form.format(figures[key])
    if interval is None:
        return text
    low, high = (form.format(bound) for bound in figures[interval])
    return f"{text} [{low}, {high}]"


def _change(key: str, before: float, after: float) -> str:
    if key == "oracle_calls_per_task":
        return ""
    if key == "accuracy":
        return f"{(after - before) * 100:+.1f} points"
    return f"{(after - before) / before:+.0%}" if before else ""


def two_by_two(changes: Sequence[Change]) -> _Json:
    """Call groups by what they did to the entropy and by the outcome of their task."""
    return {
        name: {
            "solved": sum(c.reduced is reduced and c.correct for c in changes),
            "not_solved": sum(c.reduced is reduced and not c.correct for c in changes),
        }
        for name, reduced in (("reduced", True), ("not_reduced", False))
    }


def write(folder: Path, result: _Json, exhibits: Exhibits, *, about: _Json) -> None:
    """Write ``report.json`` and ``index.html``; ``about`` says what was run."""
    counts = two_by_two(exhibits.changes)
    report = {
        "schema_version": 1,
        **about,
        **result,
        "entropy_change": {"groups": counts, "unlabelled": exhibits.unlabelled},
        "trajectory_shown": exhibits.trace.trajectory_id if exhibits.trace else None,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(page(result, exhibits, about=about), encoding="utf-8")


def page(result: _Json, exhibits: Exhibits, *, about: _Json) -> str:
    """The HTML page."""
    template = resources.files("entrogate_lab.almanac").joinpath("report.html").read_text("utf-8")
    modes = result["modes"]
    return Template(template).substitute(
        summary=escape(_summary(modes)),
        about=escape(
            " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
        ),
        table=_html_table(table_rows(modes)),
        domains=_html_table(_domain_rows(modes)),
        accuracy=bar_plot("Accuracy by mode", "accuracy", _bars(modes, "accuracy"), percent=True),
        calls=bar_plot("Calls per task by mode", "calls per task", _bars(modes, "calls")),
        changes=change_plot(exhibits.changes),
        groups=_html_table(_group_rows(exhibits)),
        unlabelled=escape(_without_label(exhibits)),
        trace=_trace(exhibits.trace),
    )


def _summary(modes: _Json) -> str:
    names = list(modes)
    if len(names) < 2:
        return f"{modes[names[0]]['tasks']} tasks in mode {names[0]}."
    before, after = modes[names[0]], modes[names[-1]]
    calls = _change("calls_per_task", before["calls_per_task"], after["calls_per_task"])
    accuracy = _change("accuracy", before["accuracy"], after["accuracy"])
    return (
        f"On the same {after['tasks']} held-out tasks, with the same seeds: {calls or 'no'} tool "
        f"calls, accuracy {accuracy}."
    )


def _bars(modes: _Json, figure: str) -> list[Bar]:
    key = "accuracy" if figure == "accuracy" else "calls_per_task"
    return [
        Bar(
            label=name,
            value=figures[key],
            low=figures[f"{figure}_ci"][0],
            high=figures[f"{figure}_ci"][1],
            style="first" if index == 0 else "second",
        )
        for index, (name, figures) in enumerate(modes.items())
    ]


def _domain_rows(modes: _Json) -> list[Row]:
    rows: list[Row] = [("domain", "mode", "tasks", "accuracy", "calls per task", "needless")]
    for domain in next(iter(modes.values()))["domains"]:
        for name, figures in modes.items():
            part = figures["domains"][domain]
            rows.append(
                (
                    domain,
                    name,
                    str(part["tasks"]),
                    _cell(part, "accuracy", "accuracy_ci", "{:.1%}"),
                    _cell(part, "calls_per_task", "calls_ci", "{:.2f}"),
                    f"{part['needless_calls_per_task']:.2f}",
                )
            )
    return rows


def _group_rows(exhibits: Exhibits) -> list[Row]:
    counts = two_by_two(exhibits.changes)
    rows: list[Row] = [("call groups", "task solved", "task not solved")]
    for name, label in (("reduced", "entropy fell"), ("not_reduced", "entropy rose")):
        rows.append((label, str(counts[name]["solved"]), str(counts[name]["not_solved"])))
    return rows


def _without_label(exhibits: Exhibits) -> str:
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(exhibits.unlabelled.items()))
    return f"Call groups without a label: {counts or 'none'}."


def _html_table(rows: Sequence[Row]) -> str:
    def line(row: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell.strip())}</{tag}>" for cell in row) + "</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"


def _trace(trace: Trace | None) -> str:
    if trace is None:
        return "<p>No trajectory with a call was recorded.</p>"
    said: list[str] = []
    for turn in trace.turns:
        results = "".join(f'<div class="result">{escape(result)}</div>' for result in turn.results)
        calls = "".join(f"<br><code>{escape(call)}</code>" for call in turn.calls)
        said.append(f"<li>{results}{escape(turn.text)}{calls}</li>")
    return (
        f"<p>“{escape(trace.question)}” Right answer: {escape(trace.gold)}; given: "
        f"{escape(trace.answer or 'none')}. Estimator: {escape(trace.estimator)}, the bars show "
        f"the upper bound. Trajectory <code>{escape(trace.trajectory_id)}</code>.</p>"
        f"{entropy_plot(trace)}<ol>{''.join(said)}</ol>"
    )

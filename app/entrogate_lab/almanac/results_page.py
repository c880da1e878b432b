# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`almanac results`: the figures of an experiment as tables and plots for `docs/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

_Json = dict[str, Any]
BEGIN, END = "<!-- figures: entrogate almanac results -->", "<!-- end of figures -->"


def write(results: _Json, docs: Path) -> None:
    """Write ``results.json``, the plots and the results page into the folder ``docs``.

    On the page the tables go between the marks; the text around them is left alone.
    """
    (docs / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    page = docs / "results.md"
    text = page.read_text() if page.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{_tables(results)}\n{END}{tail}")
    images = docs / "images"
    images.mkdir(exist_ok=True)
    _plot_methods(results, images / "results-methods.svg")
    _plot_rounds(results, images / "results-rounds.svg")


def _tables(results: _Json) -> str:
    count = f"{len(results['seeds'])} seeds × {results['tasks_per_seed']} held-out tasks"
    parts = [
        f"After {results['rounds']} rounds, {count}; brackets: 95 % intervals.\n",
        _table(
            ("method", "accuracy", "F1", "calls per task", "least", "without a call (right)"),
            [_method_row(name, figures) for name, figures in _ordered(results["methods"])],
        ),
        "\nAgainst outcome alone, on the same tasks:\n",
        _table(
            ("", "points of accuracy", "calls per task"),
            _against_rows(results["against_outcome"]),
        ),
        "\nHeadlines, as the paper defines them (against the mean of base, outcome and otc):\n",
        _table(
            ("", "here", "here, with the gate", "paper"), _headline_rows(results["headlines"])
        ),
        "\n![Accuracy against calls](images/results-methods.svg)\n",
        "![Calls, accuracy and entropy over the rounds](images/results-rounds.svg)\n",
        "ΔH against what a call was good for (rollouts of the base model):\n",
        _table(
            ("", "calls", "good when", "ΔH<0, good", "ΔH<0, bad", "else, good", "else, bad",
             "AUC", "rank correlation"),
            _evidence_rows(results["entropy_change"]),
        ),
        "\nCalls that lowered the entropy by at least so many nats:\n",
        _reduction_table(results["entropy_change"]["all"]["at_least"]),
    ]  # fmt: skip
    return "\n".join(parts)


def _ordered(methods: _Json) -> list[tuple[str, _Json]]:
    order = [name + gate for gate in ("", "+gate") for name in _COLOURS]
    return [(name, methods[name]) for name in order if name in methods]


def _method_row(name: str, figures: _Json) -> list[str]:
    without = figures["without_calls"]
    right = "" if without["accuracy"] is None else f" ({without['accuracy']:.1%})"
    return [
        name,
        _with_interval(figures, "accuracy", "{:.1%}"),
        _with_interval(figures, "f1", "{:.3f}"),
        _with_interval(figures, "calls_per_task", "{:.2f}"),
        f"{figures['oracle_calls_per_task']:.2f}",
        f"{without['share']:.0%}{right}",
    ]


def _with_interval(figures: _Json, name: str, form: str) -> str:
    low, high = (form.format(bound) for bound in figures["ci"][name])
    return f"{form.format(figures[name])} [{low}, {high}]"


def _against_rows(against: _Json) -> list[list[str]]:
    def cell(of: _Json, name: str, form: str, scale: float) -> str:
        values = (of[name], *of[f"{name}_ci"])
        return "{} [{}, {}]".format(*(form.format(value * scale) for value in values))

    return [
        [
            name,
            cell(against[name], "accuracy", "{:+.1f}", 100),
            cell(against[name], "calls_per_task", "{:+.2f}", 1),
        ]
        for name in _COLOURS
        if name in against
    ]


def _headline_rows(headlines: _Json) -> list[list[str]]:
    if not headlines:
        return []

    def cell(name: str) -> str:
        return "{:.1%} [{:.1%}, {:.1%}]".format(headlines[name], *headlines[f"{name}_ci"])

    names = {"sparse_call_reduction": "sparse: fewer calls", "dense_gain": "dense: higher F1"}
    rows = [
        [label, cell(name), cell(f"{name}_gated"), f"{headlines[f'{name}_paper']:.2%}"]
        for name, label in names.items()
    ]
    at_oracle = f"{headlines['call_reduction_at_oracle']:.1%}"
    return [*rows, ["fewer calls at the fewest that suffice", at_oracle, at_oracle, ""]]


def _evidence_rows(evidence: _Json) -> list[list[str]]:
    rows: list[list[str]] = []
    for domain, figures in evidence.items():
        if domain == "unlabelled":
            continue
        for good in ("needed", "solved"):
            of = figures[good]
            counts = ("reduced_and_good", "reduced_and_bad")
            counts += ("not_reduced_and_good", "not_reduced_and_bad")
            rows.append(
                [
                    domain,
                    str(figures["calls"]),
                    good,
                    *(str(of[name]) for name in counts),
                    *(
                        f"{of[name]:.2f} [{of[f'{name}_ci'][0]:.2f}, {of[f'{name}_ci'][1]:.2f}]"
                        for name in ("auc", "rank_correlation")
                    ),
                ]
            )
    return rows


def _reduction_table(rows: Sequence[_Json]) -> str:
    head = ["", *(f"{row['nats']:g}" if row["nats"] else "ΔH < 0" for row in rows)]
    kinds = {"of_needed": "needed", "of_needless": "needless"}
    return _table(
        head, [[name, *map(_percent, (row[k] for row in rows))] for k, name in kinds.items()]
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _plot_methods(results: _Json, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, figures in _ordered(results["methods"]):
        method, _, gate = name.partition("+")
        x, y = figures["calls_per_task"], figures["accuracy"]
        spread = figures["ci"]
        axes.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - spread["calls_per_task"][0])],
                  [max(0.0, spread["calls_per_task"][1] - x)]],
            yerr=[[max(0.0, y - spread["accuracy"][0])],
                  [max(0.0, spread["accuracy"][1] - y)]],
            fmt="s" if gate else "o",
            color=_COLOURS[method],
            label=name,
            capsize=2,
        )  # fmt: skip
    oracle = results["methods"]["base"]["oracle_calls_per_task"]
    axes.axvline(oracle, color="grey", linestyle=":", label="fewest calls that suffice")
    axes.set(xlabel="calls per task", ylabel="accuracy", xlim=(0, None))
    axes.legend(fontsize="small", ncols=2)
    _save(figure, path)


def _plot_rounds(results: _Json, path: Path) -> None:
    names = {"calls_per_task": "calls per task", "accuracy": "accuracy", "entropy": "entropy, nats"}
    figure, all_axes = pyplot.subplots(1, 3, figsize=(9, 3), layout="constrained")
    rows = results["by_round"]
    base = next(row for row in rows if row["method"] == "base")
    for axes, (name, label) in zip(all_axes, names.items(), strict=True):
        for method, colour in _COLOURS.items():
            own = [base, *(row for row in rows if row["method"] == method != "base")]
            if len(own) > 1:
                points = [row["round"] for row in own], [row[name] for row in own]
                axes.plot(*points, marker="o", color=colour, label=method)
        axes.set(xlabel="round", ylabel=label, xticks=range(results["rounds"] + 1))
    all_axes[0].legend(fontsize="small")
    _save(figure, path)


_COLOURS = {
    "base": "#555555",
    "outcome": "#1f77b4",
    "otc": "#9467bd",
    "sparse": "#2ca02c",
    "dense": "#d62728",
    "sparse-0.1": "#98df8a",
    "dense-0.1": "#ff9896",
}


def _save(figure: Any, path: Path) -> None:
    """The same figures give the same bytes."""
    with pyplot.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

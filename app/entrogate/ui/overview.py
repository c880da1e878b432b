"""The overview's sections: a chart and its table each, from the store's figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from entrogate.store.read.rows import (
    Overview,
    PolicyUse,
    ToolChange,
    ToolDecisions,
    TrajectoryFigures,
    WeightsUse,
)
from entrogate.ui.arms import HEAD, PolicyFigures, by_policy
from entrogate.ui.charts import bands, bars, lines, stacks

_PERIODS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One figure of the overview: a chart, and its numbers as a table (``rows`` below ``head``)."""

    title: str
    text: str
    chart: Markup
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


def sections(overview: Overview) -> list[Section]:
    """Those sections for which there are figures."""
    found = [
        _over_time(overview.trajectories),
        _accuracy(overview.trajectories),
        _decisions(overview.decisions),
        _changes(overview.changes),
        _arms(by_policy(overview.trajectories, overview.policy_names)),
        _versions("Decisions by policy", "Calls decided.", _policy_rows(overview.policies)),
        _versions("Weights", "Which weights answered.", _weight_rows(overview.weights)),
    ]
    return [section for section in found if section.rows]


def _over_time(rows: Sequence[TrajectoryFigures]) -> Section:
    ordered = sorted(rows, key=lambda row: row.created_at)
    size = max(1, -(-len(ordered) // _PERIODS))
    periods = [ordered[n : n + size] for n in range(0, len(ordered), size)]
    table: list[tuple[Any, ...]] = []
    for period in periods:
        calls = sum(row.n_calls for row in period)
        kept_back = sum(row.n_suppressed + row.n_replayed for row in period)
        table.append(
            (
                _stamp(period[0].created_at),
                len(period),
                f"{calls / len(period):.2f}",
                f"{kept_back / len(period):.2f}",
            )
        )
    return Section(
        title="Calls over time",
        text="Calls a trajectory, in periods of equally many trajectories.",
        chart=lines(
            [(row[0], float(row[2])) for row in table], label="Calls a trajectory over time"
        ),
        head=("From (UTC)", "Trajectories", "Calls each", "Suppressed or replayed each"),
        rows=table,
    )


def _accuracy(rows: Sequence[TrajectoryFigures]) -> Section:
    outcomes: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.outcome is not None:
            outcomes[row.n_calls - row.n_suppressed - row.n_replayed].append(row.outcome)
    means = [(calls, len(each), sum(each) / len(each)) for calls, each in sorted(outcomes.items())]
    return Section(
        title="Outcome against calls",
        text="Mean outcome of the trajectories that made so many calls.",
        chart=bars([(str(n), mean) for n, _, mean in means], label="Mean outcome by calls made"),
        head=("Calls made", "Trajectories", "Mean outcome"),
        rows=[(n, count, f"{mean:.3f}") for n, count, mean in means],
    )


def _decisions(rows: Sequence[ToolDecisions]) -> Section:
    by_tool: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        by_tool[row.name][row.applied] = row.n
    actions = ("allow", "suppress", "replay", "force")
    return Section(
        title="Decisions by tool",
        text="What became of the calls that were proposed.",
        chart=stacks(
            [(tool, [n.get(action, 0) for action in actions]) for tool, n in by_tool.items()],
            parts=actions,
            label="Calls proposed by tool and decision",
        ),
        head=("Tool", *actions),
        rows=[(tool, *(n.get(action, 0) for action in actions)) for tool, n in by_tool.items()],
    )


def _changes(rows: Sequence[ToolChange]) -> Section:
    known = [(row.name, float(row.mean)) for row in rows if row.mean is not None]
    return Section(
        title="Entropy change by tool",
        text="Mean ΔH in nats of the calls of a tool, midpoints of its bounds; it helped below 0.",
        chart=bars(known, label="Mean entropy change by tool"),
        head=("Tool", "Calls", "Sign known", "Reduced", "Mean ΔH"),
        rows=[
            (
                row.name,
                row.n,
                row.n_known,
                row.n_reduced,
                "–" if row.mean is None else f"{row.mean:+.3f}",
            )
            for row in rows
        ],
    )


def _arms(policies: Sequence[PolicyFigures]) -> Section:
    known = [(each.label, *each.outcome_limits) for each in policies if each.outcome_limits]
    return Section(
        title="Policies",
        text=(
            "Trajectories that one policy decided from the first turn on, with 95 % intervals; the"
            " chart shows the mean outcome. Policies that ran at different times had different"
            " traffic: to compare two fairly, put one on trial for a share of the trajectories."
        ),
        chart=bands(known, label="Mean outcome by policy"),
        head=HEAD,
        rows=[each.row() for each in policies],
    )


def _versions(title: str, text: str, rows: list[tuple[Any, ...]]) -> Section:
    chart = bars([(str(row[0]), float(row[1])) for row in rows], label=title)
    return Section(
        title=title,
        text=text,
        chart=chart,
        head=("Version", "Uses", "First (UTC)", "Last (UTC)"),
        rows=rows,
    )


def _policy_rows(rows: Sequence[PolicyUse]) -> list[tuple[Any, ...]]:
    return [
        (f"{row.policy_name} {row.policy_version}", row.n, _stamp(row.first), _stamp(row.last))
        for row in rows
    ]


def _weight_rows(rows: Sequence[WeightsUse]) -> list[tuple[Any, ...]]:
    return [
        (row.weight_version or "unknown", row.n, _stamp(row.first), _stamp(row.last))
        for row in rows
    ]


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

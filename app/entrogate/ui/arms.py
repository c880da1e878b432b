"""Compares policies by the trajectories that they decided from the first turn on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from entrogate.risk.means import Limits, mean_interval, ratio_interval, share_interval
from entrogate.store.read.rows import TrajectoryFigures

HEAD = (
    "Policy",
    "Trajectories",
    "Calls per trajectory",
    "Suppressed or replayed",
    "Outcomes",
    "Mean outcome",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """One policy's trajectories; each number with its 95 % interval, None where it is not known."""

    version: str
    label: str
    n: int
    calls: float  # proposed calls per trajectory, mean
    calls_limits: Limits | None
    spared: float | None  # share of the proposed calls suppressed or replayed; None: no calls
    spared_limits: Limits | None
    n_outcomes: int
    outcome: float | None  # mean, in [0, 1]
    outcome_limits: Limits | None

    def row(self) -> tuple[str, ...]:
        """A row of a table under `HEAD`."""
        return (
            self.label,
            str(self.n),
            _shown(self.calls, self.calls_limits, "{:.2f}"),
            _shown(self.spared, self.spared_limits, "{:.1%}"),
            str(self.n_outcomes),
            _shown(self.outcome, self.outcome_limits, "{:.3f}"),
        )


def by_policy(rows: Sequence[TrajectoryFigures], names: Mapping[str, str]) -> list[PolicyFigures]:
    """Figures of each policy version, those with the most trajectories first.

    Trajectories whose policy changed are left out. ``names``: of policies, by version.
    """
    grouped: defaultdict[str, list[TrajectoryFigures]] = defaultdict(list)
    for row in rows:
        if row.policy_version and not row.policy_changes:
            grouped[row.policy_version].append(row)
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return [
        figures_of(version, f"{names.get(version, 'unknown')} {version}", own)
        for version, own in ordered
    ]


def figures_of(version: str, label: str, rows: Sequence[TrajectoryFigures]) -> PolicyFigures:
    """The figures of one policy version from its trajectories ``rows``."""
    calls = [float(row.n_calls) for row in rows]
    spared = [float(row.n_suppressed + row.n_replayed) for row in rows]
    outcomes = [row.outcome for row in rows if row.outcome is not None]
    outcome = sum(outcomes) / len(outcomes) if outcomes else None
    return PolicyFigures(
        version=version,
        label=label,
        n=len(rows),
        calls=sum(calls) / len(rows) if rows else 0.0,
        calls_limits=mean_interval(calls),
        spared=sum(spared) / sum(calls) if any(calls) else None,
        spared_limits=ratio_interval(spared, calls),
        n_outcomes=len(outcomes),
        outcome=outcome,
        outcome_limits=None if outcome is None else share_interval(outcome, len(outcomes)),
    )


def _shown(value: float | None, limits: Limits | None, form: str) -> str:
    if value is None:
        return "–"
    if limits is None:
        return form.format(value)
    lower, upper = (form.format(limit) for limit in limits)
    return f"{form.format(value)} [{lower}, {upper}]"

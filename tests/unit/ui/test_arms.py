"""Policies beside each other: whose trajectories are whose."""

from __future__ import annotations

from entrogate.store.read.rows import TrajectoryFigures
from entrogate.ui.arms import by_policy


def row(version: str, outcome: float | None = None, *, calls: int = 2, changes: int = 0):
    return TrajectoryFigures(
        id="t",
        created_at=1.0,
        n_calls=calls,
        n_suppressed=1,
        n_replayed=0,
        outcome=outcome,
        policy_version=version,
        policy_changes=changes,
    )


def test_each_trajectory_belongs_to_one_policy_or_to_none() -> None:
    rows = [row("a", 1.0), row("a", 0.0, calls=4), row("a"), row("b", 1.0)]
    rows += [row("b", 0.0, changes=1), row("")]  # went on under another one; not known
    first, second = by_policy(rows, {"a": "main"})
    assert (first.label, first.n, first.n_outcomes, first.outcome) == ("main a", 3, 2, 0.5)
    assert (first.calls, first.spared) == (8 / 3, 3 / 8)
    assert (second.label, second.n, second.outcome) == ("unknown b", 1, 1.0)
    assert second.row()[2:4] == ("2.00", "50.0% [5.5%, 94.5%]")


def test_what_is_not_known_is_not_shown_as_a_number() -> None:
    (only,) = by_policy([row("a", calls=0)], {})
    assert only.row() == ("unknown a", "1", "0.00", "–", "0", "–")

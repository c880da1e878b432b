"""What is counted of exported rows: kept with each part, summed up in the dataset's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from entrogate.export.tables import Row

_COUNTED = (
    "trajectories", "rows", "tokens", "trained_tokens", "with_outcome", "outcome_sum", "calls",
    "groups", "reducing", "unknown", "zero_calls", "truncated", "incomplete",
)  # fmt: skip


def counts_of(rows: Iterable[Row]) -> dict[str, float]:
    """Of these rows, all those of their trajectories."""
    by_trajectory: dict[str, list[Row]] = {}
    for row in rows:
        by_trajectory.setdefault(row["trajectory_id"], []).append(row)
    total: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
    for own in by_trajectory.values():
        total.update(counts_of_trajectory(own))
    return dict(total)


def counts_of_trajectory(rows: Sequence[Row]) -> dict[str, float]:
    """Of all rows of one trajectory. Groups of calls count where there is an outcome."""
    first = rows[0]
    judged = [row for row in rows if row["outcome"] is not None]
    has_rewards = first["n_reducing"] is not None
    return {
        "trajectories": 1,
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "trained_tokens": sum(int(row["loss_mask"].sum()) for row in rows),
        "with_outcome": bool(judged),
        "outcome_sum": float(judged[0]["outcome"]) if judged else 0.0,
        "calls": sum(len(row["calls"]) for row in rows),
        "groups": first["n_calls"] if has_rewards else 0,
        "reducing": first["n_reducing"] if has_rewards else 0,
        "unknown": first["n_null"] if has_rewards else 0,
        "zero_calls": has_rewards and first["n_calls"] == 0,
        "truncated": any(row["truncated"] for row in rows),
        "incomplete": any(not row["complete"] for row in rows),
    }

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""One run of an export: what has settled since the last one, part by part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from entrogate.export.card import card_of
from entrogate.export.dataset import Dataset
from entrogate.export.hashes import ModelHashes
from entrogate.export.known import Known
from entrogate.export.sequences import rows_of
from entrogate.export.tables import Row, to_table
from entrogate.store import Store
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.settled import Settling, StoredTrajectory
from entrogate.types import Cursor

PART_TOKENS = 2_000_000
PART_TRAJECTORIES = 5_000

Progress = Callable[["Summary"], None]


@dataclass(slots=True)
class Summary:
    """What a run has done so far; ``late`` changed after they had been exported, and stay out."""

    trajectories: int = 0
    rows: int = 0
    parts: int = 0
    late: int = 0


@dataclass(slots=True)
class _Part:
    """Rows that wait to be written together."""

    day: str
    rows: list[Row] = field(default_factory=list[Row])
    trajectory_ids: list[str] = field(default_factory=list[str])
    cursor: Cursor | None = None
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])

    @property
    def full(self) -> bool:
        return self.tokens >= PART_TOKENS or len(self.trajectory_ids) >= PART_TRAJECTORIES

    def add(self, stored: StoredTrajectory, rows: list[Row]) -> None:
        self.rows += rows
        self.trajectory_ids.append(stored.cursor.trajectory_id)
        self.cursor = stored.cursor
        self.tokens += sum(len(row["input_ids"]) for row in rows)
        self.counts.update(_counts(stored, rows))


def export_settled(
    store: Store,
    dataset: Dataset,
    *,
    settling: Settling,
    wanted: TrajectoryFilter,
    hashes: ModelHashes | None = None,
    now: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Add to ``dataset`` every trajectory that settled since its last part, each exactly once.

    Memory is bounded by one part. Raises StoreError and ExportError; what was committed stays.
    """
    summary = Summary()
    known = Known(dataset)
    part: _Part | None = None
    moment = time.time() if now is None else now
    for stored, toolsets in store.iter_settled(settling, wanted, now=moment, after=dataset.cursor):
        if stored.cursor.trajectory_id in known:
            summary.late += 1
            continue
        day = datetime.fromtimestamp(stored.cursor.settled_at, UTC).date().isoformat()
        if part is not None and (part.full or part.day != day):
            _commit(dataset, part, summary)
            part = None
            if progress is not None:
                progress(summary)
        part = part or _Part(day)
        part.add(stored, rows_of(stored, toolsets, hashes or ModelHashes()))
    if part is not None:
        _commit(dataset, part, summary)
    if summary.parts:
        dataset.write_card(card_of(dataset))
    return summary


def _commit(dataset: Dataset, part: _Part, summary: Summary) -> None:
    assert part.cursor is not None
    table = to_table(part.rows)
    dataset.commit(
        table,
        day=part.day,
        cursor=part.cursor,
        trajectory_ids=part.trajectory_ids,
        counts=dict(part.counts),
    )
    summary.trajectories += len(part.trajectory_ids)
    summary.rows += table.num_rows
    summary.parts += 1


def _counts(stored: StoredTrajectory, rows: list[Row]) -> dict[str, Any]:
    rewards = stored.rewards
    judged = [row for row in rows if row["outcome"] is not None]
    return {
        "trajectories": 1,
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "trained_tokens": sum(int(row["loss_mask"].sum()) for row in rows),
        "with_outcome": bool(judged),
        "outcome_sum": float(judged[0]["outcome"]) if judged else 0.0,
        "calls": sum(len(row["calls"]) for row in rows),
        "groups": 0 if rewards is None else rewards.n_groups,
        "reducing": 0 if rewards is None else rewards.n_reduced,
        "unknown": 0 if rewards is None else rewards.n_groups - rewards.n_labelled,
        "zero_calls": rewards is not None and rewards.n_groups == 0,
        "truncated": any(row["truncated"] for row in rows),
        "incomplete": any(not row["complete"] for row in rows),
    }

"""The data card of a dataset: how much of what is in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from entrogate.export.dataset import Dataset
from entrogate.export.schema import SCHEMA_VERSION


def card_of(dataset: Dataset) -> dict[str, Any]:
    """Counts over all parts, as ``_card.json`` holds them."""
    totals: Counter[str] = Counter()
    for entry in dataset.entries:
        totals.update(entry.counts)
    counts = {name: int(value) for name, value in totals.items() if name != "outcome_sum"}
    judged, groups = totals["with_outcome"], totals["groups"]
    return {
        "schema_version": SCHEMA_VERSION,
        "parts": len(dataset.entries),
        **counts,
        "mean_outcome": totals["outcome_sum"] / judged if judged else None,
        "groups_per_trajectory": groups / judged if judged else None,
        "reducing_share": _share(totals["reducing"], groups - totals["unknown"]),
        "unknown_share": _share(totals["unknown"], groups),
        "zero_calls_share": _share(totals["zero_calls"], judged),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None

"""Which turns of a trajectory an outcome speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import Row

TurnRow: TypeAlias = "Row[*tuple[Any, ...]]"  # id, parent_id, has_calls


def judged_path(rows: Sequence[TurnRow], turn_id: str | None) -> list[Row[*tuple[Any, ...]]]:
    """The turns from a first one to the last that descends from ``turn_id`` (None: of them all).

    ``rows`` are the turns of the trajectory in the order of their index.
    """
    last = rows[-1]
    if turn_id is not None:
        descends = {turn_id}
        for row in rows:
            if row.parent_id in descends:
                descends.add(row.id)
        last = next(row for row in reversed(rows) if row.id in descends)
    path = [last]
    by_id = {row.id: row for row in rows if row is not last}
    while (parent := by_id.pop(path[-1].parent_id, None)) is not None:  # none twice
        path.append(parent)
    return path[::-1]

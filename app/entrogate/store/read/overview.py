"""Figures over the latest trajectories, for the viewer."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Connection, case, func, select

from entrogate.store.read.rows import (
    Overview,
    PolicyUse,
    ToolChange,
    ToolDecisions,
    TrajectoryFigures,
    WeightsUse,
)
from entrogate.store.schema import calls, changes, trajectories, turns, unindexed

Figure = TypeVar("Figure", TrajectoryFigures, ToolDecisions, ToolChange, PolicyUse, WeightsUse)


def read_overview(connection: Connection, tenant: str | None, window: int) -> Overview:
    """Of the latest ``window`` trajectories of ``tenant`` (None: of all)."""
    columns = trajectories.c
    latest = select(
        columns.id,
        columns.created_at,
        columns.n_calls,
        columns.n_suppressed,
        columns.n_replayed,
        columns.outcome,
    )
    if tenant is not None:
        latest = latest.where(columns.tenant == tenant)
    latest = latest.order_by(columns.created_at.desc(), columns.id.desc()).limit(window)
    seen = latest.subquery()
    in_window = turns.join(seen, seen.c.id == turns.c.trajectory_id)

    def rows(kind: type[Figure], query: Any) -> tuple[Figure, ...]:
        return tuple(kind(**row) for row in connection.execute(query).mappings())

    decided = in_window.join(calls, calls.c.turn_id == turns.c.id)
    changed = in_window.join(changes, changes.c.turn_id == turns.c.id).join(
        calls, calls.c.turn_id == turns.c.parent_id
    )
    count = func.count().label("n")
    period = (
        func.min(turns.c.created_at).label("first"),
        func.max(turns.c.created_at).label("last"),
    )
    name, applied = unindexed(calls.c.name), unindexed(calls.c.applied)
    return Overview(
        trajectories=rows(TrajectoryFigures, latest),
        decisions=rows(
            ToolDecisions,
            select(name.label("name"), applied.label("applied"), count)
            .select_from(decided)
            .group_by(name, applied)
            .order_by(name, applied),
        ),
        changes=rows(
            ToolChange,
            select(
                name.label("name"),
                count,
                func.count(changes.c.reduced).label("n_known"),
                func.sum(case((changes.c.reduced, 1), else_=0)).label("n_reduced"),
                func.avg((changes.c.delta_lower + changes.c.delta_upper) / 2).label("mean"),
            )
            .select_from(changed)
            .group_by(name)
            .order_by(name),
        ),
        policies=rows(
            PolicyUse,
            select(calls.c.policy_name, calls.c.policy_version, count, *period)
            .select_from(decided)
            .group_by(calls.c.policy_name, calls.c.policy_version)
            .order_by(func.max(turns.c.created_at).desc()),
        ),
        weights=rows(
            WeightsUse,
            select(turns.c.weight_version, count, *period)
            .select_from(in_window)
            .group_by(turns.c.weight_version)
            .order_by(func.max(turns.c.created_at).desc()),
        ),
    )

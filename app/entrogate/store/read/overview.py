"""Figures over the latest trajectories, for the viewer."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, Connection, FromClause, Select, case, func, select

from entrogate.store.read.policies import read_names
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

_Query: TypeAlias = "Select[*tuple[Any, ...]]"
_COUNT = func.count().label("n")


def read_overview(connection: Connection, tenant: str | None, window: int) -> Overview:
    """Of the latest ``window`` trajectories of ``tenant`` (None: of all)."""
    latest = _latest(tenant, window)
    seen = latest.subquery()
    in_window = turns.join(seen, seen.c.id == turns.c.trajectory_id)
    decided = in_window.join(calls, calls.c.turn_id == turns.c.id)
    changed = in_window.join(changes, changes.c.turn_id == turns.c.id).join(
        calls, calls.c.turn_id == turns.c.parent_id
    )

    def rows(kind: type[Figure], query: _Query) -> tuple[Figure, ...]:
        return tuple(kind(**row) for row in connection.execute(query).mappings())

    policy = (calls.c.policy_name, calls.c.policy_version)
    return Overview(
        trajectories=rows(TrajectoryFigures, latest),
        decisions=rows(ToolDecisions, _decisions(decided)),
        changes=rows(ToolChange, _entropy_changes(changed)),
        policies=rows(PolicyUse, _uses(decided, *policy)),
        weights=rows(WeightsUse, _uses(in_window, turns.c.weight_version)),
        policy_names=read_names(connection),
    )


def read_figures(
    connection: Connection, tenant: str | None, window: int
) -> tuple[TrajectoryFigures, ...]:
    """Figures of each of the latest ``window`` trajectories of ``tenant`` (None: of all)."""
    rows = connection.execute(_latest(tenant, window)).mappings()
    return tuple(TrajectoryFigures(**row) for row in rows)


def _latest(tenant: str | None, window: int) -> _Query:
    """The trajectories that the figures are about, the newest first."""
    columns = trajectories.c
    query = select(
        columns.id,
        columns.created_at,
        columns.n_calls,
        columns.n_suppressed,
        columns.n_replayed,
        columns.outcome,
        columns.policy_version,
        columns.policy_changes,
    )
    if tenant is not None:
        query = query.where(columns.tenant == tenant)
    return query.order_by(columns.created_at.desc(), columns.id.desc()).limit(window)


def _decisions(decided: FromClause) -> _Query:
    """How often which decision was carried out for the calls of each tool."""
    name, applied = unindexed(calls.c.name), unindexed(calls.c.applied)
    return (
        select(name.label("name"), applied.label("applied"), _COUNT)
        .select_from(decided)
        .group_by(name, applied)
        .order_by(name, applied)
    )


def _entropy_changes(changed: FromClause) -> _Query:
    """By the tool that was called before them."""
    name = unindexed(calls.c.name)
    return (
        select(
            name.label("name"),
            _COUNT,
            func.count(changes.c.reduced).label("n_known"),
            func.sum(case((changes.c.reduced, 1), else_=0)).label("n_reduced"),
            func.avg((changes.c.delta_lower + changes.c.delta_upper) / 2).label("mean"),
        )
        .select_from(changed)
        .group_by(name)
        .order_by(name)
    )


def _uses(rows: FromClause, *what: ColumnElement[Any]) -> _Query:
    """How often each value of ``what`` was used and when, the last used first."""
    last = func.max(turns.c.created_at)
    return (
        select(*what, _COUNT, func.min(turns.c.created_at).label("first"), last.label("last"))
        .select_from(rows)
        .group_by(*what)
        .order_by(last.desc())
    )

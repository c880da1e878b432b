"""The policy versions that are kept: each one that was ever in force on this store."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from entrogate.store.schema import policies, trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPolicy:
    """A version, and the trajectories that were last decided by it; times in seconds since the
    epoch."""

    version: str
    name: str
    mode: str
    created_at: float  # when it first came into force
    n_trajectories: int
    last: float | None  # when the latest of those began; None: there are none


def read_versions(connection: Connection) -> list[KeptPolicy]:
    """All versions, the latest first."""
    used = (
        select(
            trajectories.c.policy_version.label("version"),
            func.count().label("n"),
            func.max(trajectories.c.created_at).label("last"),
        )
        .group_by(trajectories.c.policy_version)
        .subquery()
    )
    query = (
        select(policies, func.coalesce(used.c.n, 0).label("n"), used.c.last)
        .select_from(policies.outerjoin(used, used.c.version == policies.c.version))
        .order_by(policies.c.created_at.desc(), policies.c.version)
    )
    return [
        KeptPolicy(
            version=row.version,
            name=row.name,
            mode=row.mode,
            created_at=row.created_at,
            n_trajectories=row.n,
            last=row.last,
        )
        for row in connection.execute(query)
    ]


def read_names(connection: Connection) -> dict[str, str]:
    """The names of all policies, by version."""
    return {
        row.version: row.name
        for row in connection.execute(select(policies.c.version, policies.c.name))
    }

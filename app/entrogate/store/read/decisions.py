"""Stored decisions with what they saw, and the policies they were taken under."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Subquery, select, tuple_

from entrogate.gate.features import from_json
from entrogate.store.database import Database
from entrogate.store.read.pages import pages
from entrogate.store.schema import calls, policies, trajectories, turns
from entrogate.types import Action, Decision, Features, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedCall:
    """One stored call: what the gate saw and what it said."""

    call_id: str
    name: str
    features: Features
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedTurn:
    """The calls of one turn, in order: they were decided together."""

    trajectory_id: str
    turn_id: str
    turn_index: int
    calls: tuple[DecidedCall, ...]


def iter_decisions(database: Database, batch: int) -> Iterator[DecidedTurn]:
    """Every turn with calls, by trajectory id and turn index; ``batch`` at a time. Blocks."""
    start: tuple[str, int] | None = None
    return pages(
        database,
        read_decisions,
        start=start,
        place=lambda turn: (turn.trajectory_id, turn.turn_index),
        size=batch,
    )


def read_decisions(
    connection: Connection, after: tuple[str, int] | None, limit: int
) -> Sequence[DecidedTurn]:
    """Up to ``limit`` turns with calls, by trajectory id and turn index, past ``after``."""
    key = tuple_(turns.c.trajectory_id, turns.c.turn_index)
    query = select(turns.c.id, turns.c.trajectory_id, turns.c.turn_index).where(
        select(calls.c.id).where(calls.c.turn_id == turns.c.id).exists()
    )
    if after is not None:
        query = query.where(key > after)
    page = query.order_by(turns.c.trajectory_id, turns.c.turn_index).limit(limit).subquery()
    return _decided(connection, page, page.c.trajectory_id, page.c.turn_index)


def read_latest_decisions(
    connection: Connection, tenant: str | None, limit: int
) -> Sequence[DecidedTurn]:
    """The latest ``limit`` turns with calls of ``tenant`` (None: of all), the newest first."""
    latest = select(trajectories.c.id, trajectories.c.created_at)
    if tenant is not None:
        latest = latest.where(trajectories.c.tenant == tenant)
    order = (trajectories.c.created_at.desc(), trajectories.c.id.desc())
    # Each has a turn with calls, so no more than these are needed.
    latest = latest.where(trajectories.c.n_calls > 0).order_by(*order).limit(limit).subquery()
    called = select(calls.c.id).where(calls.c.turn_id == turns.c.id).exists()
    query = select(
        turns.c.id, turns.c.trajectory_id, turns.c.turn_index, latest.c.created_at.label("began")
    ).join(latest, latest.c.id == turns.c.trajectory_id)
    query = query.where(called).order_by(
        latest.c.created_at.desc(), latest.c.id.desc(), turns.c.turn_index
    )
    page = query.limit(limit).subquery()
    return _decided(
        connection, page, page.c.began.desc(), page.c.trajectory_id.desc(), page.c.turn_index
    )


def _decided(connection: Connection, page: Subquery, *order: Any) -> list[DecidedTurn]:
    rows = connection.execute(
        select(page.c.trajectory_id, page.c.turn_index, calls)
        .join(calls, calls.c.turn_id == page.c.id)
        .order_by(*order, calls.c.position)
    )
    grouped: dict[str, list[Row[*tuple[Any, ...]]]] = {}
    for row in rows:
        grouped.setdefault(row.turn_id, []).append(row)
    return [
        DecidedTurn(
            trajectory_id=turn_rows[0].trajectory_id,
            turn_id=turn_id,
            turn_index=turn_rows[0].turn_index,
            calls=tuple(decided_call(row) for row in turn_rows),
        )
        for turn_id, turn_rows in grouped.items()
    ]


def decided_call(row: Row[*tuple[Any, ...]]) -> DecidedCall:
    """The call of this row of `calls`. ValueError where its features cannot be read."""
    return DecidedCall(
        call_id=row.id,
        name=row.name,
        features=from_json(row.features),
        decision=Decision(
            action=Action(row.action),
            applied=Action(row.applied),
            reason=row.reason,
            propensity=row.propensity,
            mode=Mode(row.mode),
            policy_name=row.policy_name,
            policy_version=row.policy_version,
        ),
    )


def read_policy(connection: Connection, version: str) -> str | None:
    """The YAML text of the policy ``version``; None where it was never used here."""
    query = select(policies.c.content).where(policies.c.version == version)
    return connection.execute(query).scalar()

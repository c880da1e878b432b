"""Published weights in the database: what routing is rebuilt from after a restart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from sqlalchemy import Connection, select, text

from entrogate.store import postgres
from entrogate.store.schema import SCHEMA_VERSION, weights
from entrogate.types import PublishedWeights, WeightsState

ChangeWeights = Callable[[Sequence[PublishedWeights]], Sequence[PublishedWeights]]
"""Takes what is published over a model and returns the versions to add or to replace."""


def read_weights(connection: Connection, model: str) -> list[PublishedWeights]:
    """What is published over ``model``, the oldest first."""
    query = select(weights).where(weights.c.model == model)
    rows = connection.execute(query.order_by(weights.c.published_at, weights.c.version))
    return [
        PublishedWeights(
            model=row.model,
            version=row.version,
            name=row.name,
            folder=row.folder,
            rank=row.rank,
            share=row.share,
            promoted_at=row.promoted_at,
            state=WeightsState(row.state),
            published_at=row.published_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


def change_weights(
    connection: Connection, model: str, change: ChangeWeights
) -> list[PublishedWeights]:
    """Read, change and write inside the caller's transaction; returns what is published then."""
    if postgres.is_postgres(connection):  # no other gateway changes what is read here
        connection.execute(text("LOCK TABLE weights IN SHARE ROW EXCLUSIVE MODE"))
    for changed in change(read_weights(connection, model)):
        _delete(connection, model, changed.version)
        connection.execute(weights.insert(), {**asdict(changed), "schema_version": SCHEMA_VERSION})
    return read_weights(connection, model)


def delete_weights(connection: Connection, model: str, version: str) -> list[PublishedWeights]:
    """Forget one version inside the caller's transaction; what remains."""
    _delete(connection, model, version)
    return read_weights(connection, model)


def _delete(connection: Connection, model: str, version: str) -> None:
    connection.execute(
        weights.delete().where(weights.c.model == model, weights.c.version == version)
    )

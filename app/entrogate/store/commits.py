"""The order of commits: every write of a turn or of feedback takes the next number.

A trajectory carries the number of its last change. Clocks jump and differ between machines; these
numbers do not, so an export that remembers one never passes over what comes later.

SQLite has one writer, so numbers appear in their order. On Postgres a transaction takes its number
before it commits, so a lower number may appear after a higher one: `settled_sequence` waits until
all up to a number have ended (`docs/decisions/0016-commit-sequence.md`).
"""

from __future__ import annotations

import time

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Double,
    Insert,
    bindparam,
    cast,
    func,
    select,
)

from entrogate.store.schema import commits


def insert_commit(dialect: Dialect) -> Insert:
    """Takes the next number: returns it. On SQLite ``written_at`` is bound as ``now``."""
    moment: ColumnElement[float] = bindparam("now")
    if dialect.name == "postgresql":  # one clock for all gateways
        moment = cast(func.extract("epoch", func.clock_timestamp()), Double)
    return commits.insert().values(written_at=moment).returning(commits.c.sequence)


def next_commit(connection: Connection) -> int:
    """The number of the caller's transaction."""
    statement = insert_commit(connection.dialect)
    bound = {} if connection.dialect.name == "postgresql" else {"now": time.time()}
    return connection.execute(statement, bound).scalar_one()


def database_time(connection: Connection) -> float:
    """Seconds since the epoch, by the clock that dates commits."""
    if connection.dialect.name != "postgresql":
        return time.time()
    moment = cast(func.extract("epoch", func.clock_timestamp()), Double)
    return connection.execute(select(moment)).scalar_one()


def last_sequence(connection: Connection) -> int:
    """The highest number that this connection sees; 0 in an empty store."""
    return connection.execute(select(func.coalesce(func.max(commits.c.sequence), 0))).scalar_one()

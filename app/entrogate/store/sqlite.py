"""SQLite: what a connection is set to, and how a transaction begins.

The driver is taken out of transaction control (``isolation_level=None``), so that a write starts
with ``BEGIN IMMEDIATE``: it holds the lock before it reads what it is going to extend.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings

BUSY_TIMEOUT_MS = 1000
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL", "off": "NORMAL"}


def check(url: URL, *, must_exist: bool) -> None:
    """Raise StoreError where the file cannot be there."""
    path = Path(str(url.database))
    if must_exist and not path.exists():
        raise StoreError(f"store: {path} does not exist")
    if not path.parent.is_dir():
        raise StoreError(f"store: the folder {path.parent} does not exist")


def writing_engine(url: URL, settings: StoreSettings) -> Engine:
    """One connection; a transaction holds the write lock from its beginning."""
    pragmas = (*_common(settings), "journal_mode=WAL", "foreign_keys=ON", "secure_delete=ON")
    return _engine(url, pragmas, "BEGIN IMMEDIATE", pool_size=1)


def reading_engine(url: URL, settings: StoreSettings) -> Engine:
    """A few connections that cannot write."""
    return _engine(url, (*_common(settings), "query_only=ON"), "BEGIN", pool_size=4)


def _common(settings: StoreSettings) -> tuple[str, ...]:
    return f"busy_timeout={BUSY_TIMEOUT_MS}", f"synchronous={_SYNCHRONOUS[settings.durability]}"


def _engine(url: URL, pragmas: tuple[str, ...], begin: str, *, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=pool_size,
        paramstyle="named",
        hide_parameters=True,  # they hold prompt text, and an error may be logged
    )

    @event.listens_for(engine, "connect")
    def prepare(dbapi: sqlite3.Connection, _: object) -> None:
        dbapi.isolation_level = None
        for pragma in pragmas:
            dbapi.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(begin)  # on the driver: this is in the way of every commit
        cursor.close()

    return engine

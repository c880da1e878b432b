"""SQLite: what a connection is set to, and how a transaction begins.

The driver is taken out of transaction control (``isolation_level=None``), so that a write starts
with ``BEGIN IMMEDIATE``: it holds the lock before it reads what it is going to extend.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import TextIO

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from entrogate.errors import StoreError
from entrogate.private import is_open_to_others, make_file, warning_of
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


def create(url: URL) -> None:
    """Make an empty file that its owner alone can read, unless there is one. StoreError.

    SQLite gives the files beside it (``-wal``, ``-shm``) the same mode.
    """
    path = Path(str(url.database))
    try:
        make_file(path)
    except OSError as error:
        raise StoreError(f"store: cannot create {path}: {error.strerror}") from None


def warnings(url: URL) -> list[str]:
    """What is to be said of files of this database that others can read."""
    path = Path(str(url.database))
    files = [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))]
    return [warning_of(file) for file in files if is_open_to_others(file)]


def claim(url: URL) -> TextIO:
    """Be the only gateway of this file for as long as the returned file is open.

    A gateway remembers the latest turns, which holds as long as no other one writes (see
    `heads`). The lock goes with the process, however it ends. Raises StoreError.
    """
    path = Path(str(url.database)).resolve()
    beside = path.with_name(f"{path.name}-gateway")
    try:
        make_file(beside)
        held = beside.open("r+")
    except OSError as error:
        raise StoreError(f"store: cannot lock {beside}: {error.strerror}") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with held:
            process = held.read().strip()
        raise StoreError(
            f"store: another gateway (process {process or 'unknown'}) uses {path};"
            " gateways that share a store need a postgresql:// URL"
        ) from None
    held.truncate()
    held.write(f"{os.getpid()}\n")
    held.flush()
    return held


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

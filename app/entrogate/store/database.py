"""Opening a database: engines, SQLite's pragmas, migrations, and errors in one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store.schema import REVISION

BUSY_TIMEOUT_MS = 1000
_SYNCHRONOUS = {"full": "FULL", "normal": "NORMAL", "off": "NORMAL"}


def store_error(error: Exception, doing: str) -> StoreError:
    """One line for the user: what was attempted and what the database said."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    first = (str(said).strip() or type(said).__name__).splitlines()[0]
    return StoreError(f"store: {doing}: {first}")


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Raise what SQLAlchemy or sqlite3 raises as a `StoreError`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise store_error(error, doing) from error


def is_locked(error: Exception) -> bool:
    """Another process holds the lock: worth another try."""
    said = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(said, sqlite3.OperationalError):
        return said.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return False


def parse_url(raw: str) -> URL:
    """A URL that this version can open; `StoreError` says what would be right."""
    try:
        url = make_url(raw)
    except ArgumentError:
        raise StoreError(
            f"store.url {raw!r} is no URL; say for example sqlite:///entrogate.db"
        ) from None
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"store.url: {url.drivername!r} is not supported; use sqlite:///PATH")
    if not url.database or url.database == ":memory:":
        raise StoreError("store.url: an in-memory database cannot be shared; use sqlite:///PATH")
    return url


class Database:
    """A writing engine with one connection and a reading one with a small pool.

    SQLite's driver is taken out of transaction control (``isolation_level=None``), so that a write
    starts with ``BEGIN IMMEDIATE``: it holds the lock before it reads what it is going to extend.
    """

    def __init__(self, settings: StoreSettings, *, read_only: bool = False) -> None:
        self.url = parse_url(settings.url)
        assert self.url.database is not None
        path = Path(self.url.database)
        if read_only and not path.exists():
            raise StoreError(f"store: {path} does not exist")
        if not path.parent.is_dir():
            raise StoreError(f"store: the folder {path.parent} does not exist")
        synchronous = _SYNCHRONOUS[settings.durability]
        self.writer = self._engine(synchronous, "BEGIN IMMEDIATE", pool_size=1)
        self.reader = self._engine(synchronous, "BEGIN", pool_size=4, query_only=True)
        with translated(f"cannot open {path}"):
            if read_only:
                with self.reader.begin() as connection:
                    self._require_current(connection)
            else:
                with self.writer.begin() as connection:
                    migrate(connection)

    def _engine(
        self, synchronous: str, begin: str, *, pool_size: int, query_only: bool = False
    ) -> Engine:
        engine = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=pool_size,
            paramstyle="named",
            hide_parameters=True,  # they hold prompt text, and an error may be logged
        )

        @event.listens_for(engine, "connect")
        def prepare(dbapi: sqlite3.Connection, _: object) -> None:
            dbapi.isolation_level = None
            pragmas = [f"busy_timeout={BUSY_TIMEOUT_MS}", f"synchronous={synchronous}"]
            pragmas += ["query_only=ON"] if query_only else ["journal_mode=WAL", "foreign_keys=ON"]
            for pragma in pragmas:
                dbapi.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def start(connection: Connection) -> None:
            cursor = connection.connection.cursor()
            cursor.execute(begin)  # on the driver: this is in the way of every commit
            cursor.close()

        return engine

    def _require_current(self, connection: Connection) -> None:
        current = current_revision(connection)
        if current != REVISION:
            raise StoreError(
                f"store: {self.url.database} has schema revision {current}, this version reads "
                f"{REVISION}; open it once with `entrogate serve` of this version to migrate it"
            )

    def close(self) -> None:
        """Close every pooled connection; SQLite then folds the WAL into the file."""
        self.reader.dispose()
        self.writer.dispose()


def current_revision(connection: Connection) -> str | None:
    """The schema revision of the database; None when it is empty."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables:
        raise StoreError(
            f"store: {connection.engine.url.database} holds other tables "
            f"({', '.join(sorted(tables)[:3])}); it is not an Entrogate database"
        )
    return None


def migrate(connection: Connection) -> None:
    """Bring the database to `REVISION` inside the caller's transaction.

    Raises `StoreError` when it was written by a newer version or is not ours.
    """
    current = current_revision(connection)
    if current == REVISION:
        return
    # Alembic takes 100 ms to import, and an up-to-date database has no need of it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise StoreError(
            f"store: {connection.engine.url.database} has schema revision {current}, which this "
            f"version (newest: {REVISION}) does not know; use the newer Entrogate that wrote it"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def scalar_pragma(connection: Connection, name: str) -> Any:
    """The value of a SQLite pragma."""
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

"""Postgres through psycopg 3: what a session is set to, and what of a commit can be asked later."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings

OLDEST = 13  # for pg_current_xact_id()
_MIGRATION_LOCK = 0x656E74726F67  # any number that nothing else in the database takes
_STATEMENT_TIMEOUT_SECONDS = 30
_LOCK_TIMEOUT_SECONDS = 5
_HORIZON_PATIENCE_SECONDS = 5.0
_HORIZON_PAUSE_SECONDS = 0.01
_WRITING = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND database = (
    SELECT oid FROM pg_database WHERE datname = current_database()
) AND relation = 'commits'::regclass AND mode = 'RowExclusiveLock'
"""

# A server that has gone without a word is noticed after 15 seconds.
_CONNECT = {
    "application_name": "entrogate",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",
}
# `normal` waits for the server's own disk, `full` for the standbys too that the server waits for.
_SYNCHRONOUS_COMMIT = {"full": "on", "normal": "local", "off": "off"}


def writing_engine(url: URL, settings: StoreSettings) -> Engine:
    """One connection. Rows that a transaction is going to extend are locked one by one."""
    session = {
        "synchronous_commit": _SYNCHRONOUS_COMMIT[settings.durability],
        "lock_timeout": f"{_LOCK_TIMEOUT_SECONDS}s",
        "statement_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{2 * _STATEMENT_TIMEOUT_SECONDS}s",
    }
    return _engine(url, session, isolation_level="READ COMMITTED", pool_size=1)


def reading_engine(url: URL, *, patient: bool) -> Engine:
    """A few connections that cannot write; a transaction reads the state of one moment."""
    timeout = 0 if patient else _STATEMENT_TIMEOUT_SECONDS
    session = {"default_transaction_read_only": "on", "statement_timeout": f"{timeout}s"}
    return _engine(url, session, isolation_level="REPEATABLE READ", pool_size=4)


def is_postgres(connection: Connection | Engine) -> bool:
    """Whether the database is Postgres; if not, it is SQLite."""
    return connection.dialect.name == "postgresql"


def is_postgres_url(url: URL) -> bool:
    """Whether ``url`` names a Postgres database, whichever its driver."""
    return url.get_backend_name() == "postgresql"


def check(connection: Connection) -> None:
    """Raise StoreError where the server is too old or cannot hold every text."""
    info: Any = connection.connection.driver_connection
    version, encoding = info.info.server_version // 10000, info.info.encoding
    if version < OLDEST:
        raise StoreError(f"store: Postgres {version} is too old; {OLDEST} or later is needed")
    stored = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if stored != "UTF8" or encoding != "utf-8":
        raise StoreError(f"store: the database is encoded in {stored}; create it with UTF8")


def lock_migrations(connection: Connection) -> None:
    """Wait until no other process migrates; held to the end of the transaction."""
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def transaction_id(connection: Connection) -> str:
    """By which the commit of this transaction can be asked for later."""
    return connection.exec_driver_sql("SELECT pg_current_xact_id()::text").scalar_one()


def transaction_status(connection: Connection, id_: str) -> str:
    """``committed``, ``aborted`` or ``in progress``."""
    query = text("SELECT pg_xact_status(CAST(:id AS xid8))")
    return connection.execute(query, {"id": id_}).scalar_one()


def settled_sequence(engine: Engine) -> tuple[int, bool]:
    """A number of `commits` up to which every transaction has ended; False after too long a wait.

    A transaction takes the table's lock before its number and gives it back after its end, so all
    that may still bring a number up to the highest one are among those that hold the lock now.
    """
    with engine.connect() as connection:
        highest = connection.exec_driver_sql(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM commits_sequence_seq"
        ).scalar_one()
        waiting = set(connection.exec_driver_sql(_WRITING).scalars())
        until = time.monotonic() + _HORIZON_PATIENCE_SECONDS
        while waiting:
            if time.monotonic() >= until:
                return highest, False
            time.sleep(_HORIZON_PAUSE_SECONDS)
            waiting &= set(connection.exec_driver_sql(_WRITING).scalars())
    return highest, True


def pipelined(connection: Connection) -> AbstractContextManager[Any]:
    """In the block, statements on the driver's cursors do not wait for one another's answers."""
    driver: Any = connection.connection.driver_connection
    return driver.pipeline()


def _engine(url: URL, session: dict[str, str], *, isolation_level: Any, pool_size: int) -> Engine:
    engine = create_engine(
        url.set(query=_CONNECT | dict(url.query)),
        isolation_level=isolation_level,
        pool_size=pool_size,
        max_overflow=pool_size,
        hide_parameters=True,  # they hold prompt text, and an error may be logged
    )

    @event.listens_for(engine, "connect")
    def prepare(driver: Any, _: object) -> None:
        _store_every_text(driver)
        driver.autocommit = True
        for name, value in session.items():
            driver.execute(f"SET {name} = '{value}'")
        driver.autocommit = False

    return engine


def _store_every_text(driver: Any) -> None:
    """Postgres has no NUL in a text, and a tool may well return one: U+FFFD takes its place."""
    from psycopg.types import string

    def without_nul(kind: Any) -> Any:
        def dump(self: Any, obj: str) -> Any:
            return kind.dump(self, obj.replace("\0", "\ufffd") if "\0" in obj else obj)

        return type(kind.__name__, (kind,), {"dump": dump})

    # The last one registered is the default: as psycopg itself orders them.
    for kind in (string.StrDumperVarchar, string.StrDumper, string.StrDumperUnknown):
        driver.adapters.register_dumper(str, without_nul(kind))

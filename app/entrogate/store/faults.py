"""What a database error means: for the user in one line, for the store whether to try again."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from entrogate.errors import StoreError

_SQLITE_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SQLITE_UNABLE = (
    *_SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
)
# Postgres, appendix A. A lock that stays: serialisation, deadlock, lock timeout.
_CONTENDED = ("40001", "40P01", "55P03")
# The session is of no more use: it ends, starts, has no room, or has become a read-only standby.
_LOST = ("57P01", "57P02", "57P03", "57P05", "53300", "25006", "25P03")
# The disk is full, or does not answer.
_UNABLE = ("53100", "58030")


def store_error(error: Exception, doing: str) -> StoreError:
    """One line for the user: what was attempted and what the database said."""
    said = _said(error)
    first = (str(said).strip() or type(said).__name__).splitlines()[0]
    return StoreError(f"store: {doing}: {first}")


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Raise what SQLAlchemy or sqlite3 raises as a `StoreError`."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise store_error(error, doing) from error


def is_database_error(error: Exception) -> bool:
    """SQLAlchemy's or a driver's; psycopg's are known by their attribute, for it may be missing."""
    return isinstance(error, SQLAlchemyError | sqlite3.Error) or hasattr(error, "sqlstate")


def is_locked(error: Exception) -> bool:
    """Another session holds a lock: worth another try of the whole transaction."""
    said = _said(error)
    if isinstance(said, sqlite3.OperationalError):
        return said.sqlite_errorcode & 0xFF in _SQLITE_BUSY
    return _sqlstate(said) in _CONTENDED


def is_lost(error: Exception) -> bool:
    """The server or the way to it is gone: worth another try over a new connection."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    said = _said(error)
    if not hasattr(said, "sqlstate"):
        return False
    state = _sqlstate(said)
    if state is None:  # libpq's own words: refused, timed out, closed unexpectedly
        return type(said).__name__ == "OperationalError"
    return state in _LOST or state.startswith("08")


def is_passing(error: Exception) -> bool:
    """What was to be written is right, and the database cannot take it now: full, away, locked."""
    said = _said(error)
    if isinstance(said, sqlite3.Error):
        code = getattr(said, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_UNABLE
    return is_locked(error) or is_lost(error) or _sqlstate(said) in _UNABLE


def is_conflict(error: Exception) -> bool:
    """A key is taken or missing: another session may have been quicker, so look again."""
    said = _said(error)
    if isinstance(error, IntegrityError) or isinstance(said, sqlite3.IntegrityError):
        return True
    return (_sqlstate(said) or "").startswith("23")


def _said(error: Exception) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _sqlstate(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None)

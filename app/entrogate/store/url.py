"""Store URLs: which ones this version opens, and how an error names them (without passwords)."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from entrogate.errors import StoreError

_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRES = ("postgresql", "postgresql+psycopg", "postgresql+asyncpg", "postgres")
_RIGHT = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"


def parse_url(raw: str) -> URL:
    """A URL that this version can open; `StoreError` says what would be right."""
    try:
        url = make_url(raw)
    except (ArgumentError, ValueError):  # not quoted: it may hold a password
        raise StoreError(f"store.url is no URL; use {_RIGHT}") from None
    if url.drivername in _POSTGRES:
        return _postgres(url)
    if url.drivername not in _SQLITE:
        raise StoreError(f"store.url: {url.drivername!r} is not supported; use {_RIGHT}")
    if not url.database or url.database == ":memory:":
        raise StoreError("store.url: an in-memory database cannot be shared; use sqlite:///PATH")
    return url


def name_of(url: URL) -> str:
    """What an error calls the database: its file, or its address."""
    if url.drivername in _SQLITE:
        return str(url.database)
    return url.set(drivername="postgresql", password=None, query={}).render_as_string()


def _postgres(url: URL) -> URL:
    """Driven by psycopg 3, whichever driver it names (docs/decisions/0008-postgres.md)."""
    if not url.database:
        raise StoreError("store.url names no database; use postgresql://USER@HOST/DATABASE")
    if "ssl" in url.query:  # asyncpg's word for it
        ssl = url.query["ssl"]
        url = url.difference_update_query(["ssl"]).update_query_dict({"sslmode": ssl})
    return url.set(drivername="postgresql+psycopg")

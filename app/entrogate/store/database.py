"""Opening a database, SQLite or Postgres: its engines, and its schema brought up to date."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import postgres, sqlite
from entrogate.store.faults import is_lost, translated
from entrogate.store.migrate import require_current, upgrade
from entrogate.store.url import name_of, parse_url

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Database:
    """A writing engine with one connection and a reading one with a small pool.

    ``shared``: other gateways may write at the same time, so what this process remembers of the
    latest turns may be old. Without ``migrating`` the database must be there and up to date. A
    gateway opens it ``alone``: a second one of the same SQLite file is refused.
    """

    def __init__(
        self, settings: StoreSettings, *, migrating: bool = True, alone: bool = False
    ) -> None:
        self._claim: TextIO | None = None
        self.url = parse_url(settings.url)
        self.shared = postgres.is_postgres_url(self.url)
        if self.shared:
            self.writer = postgres.writing_engine(self.url, settings)
            self.reader = postgres.reading_engine(self.url, patient=not migrating)
            # One statement needs no transaction, which is two round trips more.
            self.glances = self.reader.execution_options(isolation_level="AUTOCOMMIT")
        else:
            sqlite.check(self.url, must_exist=not migrating)
            if alone:
                self._claim = sqlite.claim(self.url)
            if migrating:
                self._create()
            self.writer = sqlite.writing_engine(self.url, settings)
            self.glances = self.reader = sqlite.reading_engine(self.url, settings)
        try:
            with translated(f"cannot open {name_of(self.url)}"):
                self._prepare(migrating=migrating)
        except StoreError:
            self.close()
            raise

    def _create(self) -> None:
        try:
            sqlite.create(self.url)
        except StoreError:
            if self._claim is not None:
                self._claim.close()
            raise
        for warning in sqlite.warnings(self.url):
            _log.warning("store.open_to_others %s", warning)

    def _prepare(self, *, migrating: bool) -> None:
        with (self.writer if migrating else self.reader).begin() as connection:
            if self.shared:
                postgres.check(connection)
            if migrating:
                upgrade(connection)
            else:
                require_current(connection)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """A transaction that reads. Raises `StoreError`."""
        with translated("cannot read"), self.reader.begin() as connection:
            yield connection

    def read(self, query: Callable[[Connection], T], *, glance: bool = False) -> T:
        """What ``query`` reads, on a new connection if the pooled one was lost.

        With ``glance`` it is a single statement. Raises `StoreError`.
        """
        engine = self.glances if glance else self.reader
        with translated("cannot read"):
            try:
                with engine.begin() as connection:
                    return query(connection)
            except DBAPIError as error:
                if not is_lost(error):
                    raise
            with engine.begin() as connection:
                return query(connection)

    def close(self) -> None:
        """Close every pooled connection; SQLite then folds the WAL into the file."""
        self.reader.dispose()
        self.writer.dispose()
        if self._claim is not None:
            self._claim.close()

"""What is done to the records rather than with them: erasure and the audit, of an open store."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, Protocol

from sqlalchemy import Connection

from entrogate.background import beside
from entrogate.errors import EntrogateError
from entrogate.store import postgres
from entrogate.store.admin.audit import (
    AuditFilter,
    AuditPage,
    Deed,
    note,
    read_audit,
)
from entrogate.store.admin.erasure import (
    Erased,
    ToErase,
    begin,
    count,
    erase_some,
    is_erased,
    marks,
    sweep,
)
from entrogate.store.database import Database
from entrogate.store.faults import translated

_log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
_TRUNCATE_SECONDS = 5.0


class Run(Protocol):
    """Runs work on a connection of the store, in one transaction."""

    def __call__(self, work: Callable[[Connection], Any], /) -> Awaitable[Any]:
        """What ``work`` returns, once its transaction is committed; its exceptions roll it back."""
        ...


class Administration:
    """``write`` and ``read`` run transactions; ``forget`` drops what is remembered of turns."""

    def __init__(
        self, database: Database, *, write: Run, read: Run, forget: Callable[[], None]
    ) -> None:
        self._database = database
        self._write = write
        self._read = read
        self._forget = forget

    async def count(self, chosen: ToErase) -> Erased:
        """How much `erase` would erase. Raises `UnknownRecord`, `ErasedRecord`."""
        return await self._read(lambda connection: count(connection, chosen))

    async def erase(self, chosen: ToErase, *, actor: str) -> Erased:
        """Erase it all, some trajectories at a time; turns are written in between.

        Raises `UnknownRecord` where there is nothing, `ErasedRecord` where there is nothing any
        more, `StoreError`: what was erased by then stays erased.
        """
        done = await self._write(lambda connection: begin(connection, chosen, actor))
        while True:
            self._forget()
            more = await self._write(lambda connection: erase_some(connection, chosen))
            if not more.trajectories:
                break
            done += more
        await self._write(sweep)
        if not self._database.shared:
            await asyncio.to_thread(truncate_log, str(self._database.url.database))
        return done

    async def is_erased(self, trajectory_id: str) -> bool:
        """Whether a trajectory of this id was erased."""
        return await self._read(lambda connection: is_erased(connection, trajectory_id))

    async def note(self, *deeds: Deed) -> None:
        """Add to the audit."""
        await self._write(lambda connection: note(connection, *deeds))

    async def audit(
        self, wanted: AuditFilter, *, limit: int = 50, before: int | None = None
    ) -> AuditPage:
        """A page of the audit, the latest first. ValueError for a bad limit."""
        return await self._read(
            lambda connection: read_audit(connection, wanted, limit=limit, before=before)
        )

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Meanwhile, learn soon of what others erase (another gateway, the command line)."""
        async with beside(self._watch(), name="erasures"):
            yield

    async def _watch(self) -> None:
        known: int | None = None
        while True:
            try:
                found: int = await self._read(marks)
            except EntrogateError:
                pass  # the database is away: others say so
            else:
                if known is not None and found != known:
                    self._forget()
                known = found
            await asyncio.sleep(WATCH_SECONDS)


def erase_now(database: Database, chosen: ToErase, *, actor: str) -> Erased:
    """As `Administration.erase`, for a command. Blocks."""
    with translated("cannot erase"):
        with database.writer.begin() as connection:
            done = begin(connection, chosen, actor)
        while True:
            with database.writer.begin() as connection:
                more = erase_some(connection, chosen)
            if not more.trajectories:
                break
            done += more
        with database.writer.begin() as connection:
            sweep(connection)
    if not postgres.is_postgres_url(database.url):
        truncate_log(str(database.url.database))
    return done


def truncate_log(file: str) -> bool:
    """Empty SQLite's write-ahead log, which holds pages as they were; whether that was possible.

    A transaction that reads for seconds is in the way; the log is then emptied after it. Never
    raises: what it comes after is done.
    """
    deadline = time.monotonic() + _TRUNCATE_SECONDS
    with suppress(sqlite3.Error), closing(sqlite3.connect(file)) as connection:
        while True:
            (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return True
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    _log.warning("erase.log_in_use %s-wal keeps erased pages until it is reused", file)
    return False

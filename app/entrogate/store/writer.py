"""The group-commit writer: one thread, one transaction for all that is waiting.

Jobs come from the event loop through a bounded queue and are settled there, once a batch. A lone
job is committed at once; while jobs keep coming, commits are at least one interval apart, so that
they are shared. All turns that are waiting are one transaction; when it fails, each job is tried by
itself, so that one bad record does not fail the others. Other work is a transaction each: it
locks rows in an order of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from entrogate.errors import EntrogateError, StoreError
from entrogate.store.faults import is_database_error, is_locked, is_lost, store_error
from entrogate.store.tables import TurnTables
from entrogate.store.transactions import Transactions
from entrogate.types import TurnHead, TurnRecord

T = TypeVar("T")

BATCH_LIMIT = 1000
QUEUE_BYTES = 512 * 2**20
PATIENCE_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Turns to insert, or other ``work`` on the writing connection."""

    records: Sequence[TurnRecord] = ()
    work: Callable[[Connection], Any] | None = None
    future: asyncio.Future[Any] | None = None  # None: nobody waits
    size: int = field(init=False)  # bytes, roughly

    def __post_init__(self) -> None:
        self.size = sum(_size(record) for record in self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What became of a batch: per job the result or the error, and the time it took."""

    jobs: list[Job]
    outcomes: list[Any]  # a StoreError where the job failed
    seconds: float


class Writer:
    """``settle`` is called on ``loop`` with every finished batch."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        settle: Callable[[Batch], None],
        *,
        interval_seconds: float,
        queue_limit: int,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._loop = loop
        self._settle = settle
        self._interval = interval_seconds
        self._limit = queue_limit
        self._tables = TurnTables(engine.dialect)
        self._transactions = Transactions(engine, patience_seconds=patience_seconds)
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        # Each counter has one writing thread; their differences are what is waiting.
        self._jobs_in = self._bytes_in = 0
        self._jobs_done = self._bytes_done = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="entrogate-store", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs taken on and not yet written."""
        return self._jobs_in - self._jobs_done

    def submit(self, job: Job) -> None:
        """Take a job on, or raise `StoreError` at once when too much is waiting."""
        if self._closed:
            raise StoreError("store: closed")
        if self.depth >= self._limit or self._bytes_in - self._bytes_done >= QUEUE_BYTES:
            raise StoreError(f"store: {self.depth} writes are waiting, the queue is full")
        self._jobs_in += 1
        self._bytes_in += job.size
        self._queue.put(job)

    async def close(self) -> None:
        """Write what is waiting, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        last_commit = 0.0
        running = True
        while running:
            jobs = [self._queue.get()]
            wait = last_commit + self._interval - time.monotonic()
            if wait > 0 and jobs[0] is not None:
                time.sleep(wait)
            jobs += self._drain()
            running = jobs[-1] is not None
            taken = [job for job in jobs if job is not None]
            if taken:
                self._finish(taken)
            last_commit = time.monotonic()
        self._transactions.disconnect()

    def _drain(self) -> list[Job | None]:
        """What else is waiting, up to the end mark (None), which stays last."""
        jobs: list[Job | None] = []
        try:
            while len(jobs) < BATCH_LIMIT - 1:
                jobs.append(self._queue.get_nowait())
        except Empty:
            pass
        return jobs

    def _finish(self, jobs: list[Job]) -> None:
        start = time.perf_counter()
        outcomes = self._commit(jobs)
        batch = Batch(jobs=jobs, outcomes=outcomes, seconds=time.perf_counter() - start)
        self._bytes_done += sum(job.size for job in jobs)
        self._jobs_done += len(jobs)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, batch)

    def _commit(self, jobs: list[Job]) -> list[Any]:
        """Per job its result or its error."""
        turns = [job for job in jobs if job.work is None]
        settled = dict(zip(turns, self._commit_turns(turns), strict=True))
        settled |= {job: self._supervised(job.work) for job in jobs if job.work is not None}
        return [settled[job] for job in jobs]

    def _commit_turns(self, jobs: list[Job]) -> list[Any]:
        if not jobs:
            return []
        records = [record for job in jobs for record in job.records]
        heads = self._supervised(lambda connection: self._tables.write(connection, records))
        if not isinstance(heads, Exception):
            self._tables.committed(records)
            return _dealt(heads, jobs)
        cause = heads.__cause__
        if len(jobs) == 1 or (
            isinstance(cause, Exception) and (is_locked(cause) or is_lost(cause))
        ):
            return [heads] * len(jobs)
        return [self._commit_turns([job])[0] for job in jobs]

    def _supervised(self, work: Callable[[Connection], T]) -> T | EntrogateError:
        """What the work returns, or its error: nothing may end this thread."""
        try:
            return self._transactions.run(work)
        except EntrogateError as error:  # meant for whoever waits
            return error
        except Exception as error:  # noqa: BLE001
            if not is_database_error(error):
                _log.exception("store.write_failed")
            failure = store_error(error, "write failed")
            failure.__cause__ = error
            return failure


def _dealt(heads: Sequence[TurnHead], jobs: Sequence[Job]) -> list[list[TurnHead]]:
    """The heads of all turns, by job."""
    each = iter(heads)
    return [[next(each) for _ in job.records] for job in jobs]


def _size(record: TurnRecord) -> int:
    tokens = len(record.prompt_token_ids) + 7 * len(record.capture)
    texts = len(record.new_messages) + len(record.response) + len(record.params)
    return 4 * tokens + texts + len(record.tools or b"")

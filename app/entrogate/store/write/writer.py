"""The group-commit writer: one thread, one transaction for all that is waiting.

Jobs come from the event loop through a bounded queue and are settled there, once a batch. A lone
job is committed at once; while jobs keep coming, commits are at least one interval apart, so that
they are shared. All turns that are waiting are one transaction; when it fails, each job is tried by
itself, so that one bad record does not fail the others. Other work is a transaction each: it
locks rows in an order of its own.

While the database cannot take turns (it is away, locked, full), they wait in the queue in their
order, and whoever waits for them is told so. They are lost only if the process ends before it can.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from entrogate.errors import EntrogateError, StoreError
from entrogate.store.faults import is_database_error, is_passing, store_error
from entrogate.store.transactions import Transactions
from entrogate.store.write.turns import TurnTables
from entrogate.types import TurnHead, TurnRecord

T = TypeVar("T")

BATCH_LIMIT = 1000
QUEUE_BYTES = 512 * 2**20
RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Turns to insert, or other ``work`` on the writing connection."""

    records: Sequence[TurnRecord] = ()
    work: Callable[[Connection], Any] | None = None
    future: asyncio.Future[Any] | None = None  # None: nobody waits, or no longer
    size: int = field(init=False)  # bytes, roughly
    since: float = field(default_factory=time.monotonic)  # when it was made

    def __post_init__(self) -> None:
        self.size = sum(_size(record) for record in self.records)

    def settle(self, outcome: Any) -> bool:
        """Tell whoever waits, in the event loop; whether there was somebody."""
        future, self.future = self.future, None
        if future is None or future.done():  # done: the caller was cancelled
            return False
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        return True


class Deferred:
    """The turns wait in memory for a database that cannot take them now; nobody waits for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What became of a batch: per job the result or the error, and the time it took."""

    jobs: list[Job]
    outcomes: list[Any]  # a StoreError where the job failed, or Deferred
    seconds: float


class Writer:
    """``settle`` is called on ``loop`` with every finished batch.

    Turns that the database cannot take now, after ``patience_seconds`` of trying, are deferred:
    their outcome is a `Deferred` at first, and what became of them when they are written.
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        settle: Callable[[Batch], None],
        *,
        interval_seconds: float,
        queue_limit: int,
        patience_seconds: float,
    ) -> None:
        self._loop = loop
        self._settle = settle
        self._interval = interval_seconds
        self._limit = queue_limit
        self._patience = patience_seconds
        self._tables = TurnTables(engine.dialect)
        self._transactions = Transactions(engine, patience_seconds=patience_seconds)
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._deferred: deque[Job] = deque()
        self._deferred_since = self._retry_at = 0.0
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

    @property
    def deferred(self) -> int:
        """Those among them that the database could not take yet."""
        return len(self._deferred)

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
            jobs = self._wait()
            wait = last_commit + self._interval - time.monotonic()
            if wait > 0 and jobs and jobs[0] is not None:
                time.sleep(wait)
            jobs += self._drain()
            running = not jobs or jobs[-1] is not None
            self._catch_up()
            taken = [job for job in jobs if job is not None]
            if taken:
                self._finish(taken)
            last_commit = time.monotonic()
        self._give_up()
        self._transactions.disconnect()

    def _wait(self) -> list[Job | None]:
        """The next job, or none when it is time to try the deferred ones again."""
        if not self._deferred:
            return [self._queue.get()]
        try:
            return [self._queue.get(timeout=max(0.0, self._retry_at - time.monotonic()))]
        except Empty:
            return []

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
        self._tell(jobs, outcomes, time.perf_counter() - start)

    def _tell(self, jobs: list[Job], outcomes: list[Any], seconds: float) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if not isinstance(outcome, Deferred):
                self._bytes_done += job.size
                self._jobs_done += 1
        if not self._loop.is_closed():
            batch = Batch(jobs=jobs, outcomes=outcomes, seconds=seconds)
            self._loop.call_soon_threadsafe(self._settle, batch)

    def _commit(self, jobs: list[Job]) -> list[Any]:
        """Per job its result or its error."""
        turns = [job for job in jobs if job.work is None]
        settled = dict(zip(turns, self._commit_turns(turns), strict=True))
        settled |= self._worked([job for job in jobs if job.work is not None])
        return [settled[job] for job in jobs]

    def _worked(self, jobs: list[Job]) -> dict[Job, Any]:
        """What became of each. They wait for the database together, each from when it was made."""
        outcomes: dict[Job, Any] = {}
        fault: StoreError | None = None  # of the database, while it takes nothing
        for job in jobs:
            assert job.work is not None
            until = job.since + self._patience
            if fault is None or time.monotonic() < until:
                outcome = self._supervised(job.work, until=until)
                fault = None
                if isinstance(outcome, StoreError) and isinstance(outcome.__cause__, Exception):
                    fault = outcome if is_passing(outcome.__cause__) else None
            else:
                outcome = StoreError(str(fault))
            outcomes[job] = outcome
        return outcomes

    def _commit_turns(self, jobs: list[Job]) -> list[Any]:
        if not jobs:
            return []
        outcomes = None if self._deferred else self._written(jobs)  # after those, in order
        if outcomes is None:
            if not self._deferred:
                self._deferred_since = time.monotonic()
                self._retry_at = self._deferred_since + RETRY_SECONDS
            self._deferred.extend(jobs)
            return [Deferred()] * len(jobs)
        return outcomes

    def _written(self, jobs: list[Job], *, again: bool = False) -> list[Any] | None:
        """Per job its heads or its error; None when the database can take none of them now."""
        records = [record for job in jobs for record in job.records]
        write = self._tables.write_again if again else self._tables.write
        heads = self._supervised(lambda connection: write(connection, records))
        if not isinstance(heads, Exception):
            self._tables.committed(records)
            return _dealt(heads, jobs)
        if isinstance(heads.__cause__, Exception) and is_passing(heads.__cause__):
            if not self._deferred:
                _log.error("store.away %s; turns wait", heads)
            return None
        if len(jobs) == 1:
            return [heads]
        outcomes: list[Any] = []
        for job in jobs:
            found = self._written([job], again=again)
            if found is None:  # what is stored by now will be found then
                return None
            outcomes += found
        return outcomes

    def _catch_up(self) -> None:
        """Write what was deferred, in order, if it is time to try."""
        before = len(self._deferred)
        while self._deferred and time.monotonic() >= self._retry_at:
            start = time.perf_counter()
            jobs = list(islice(self._deferred, BATCH_LIMIT))
            outcomes = self._written(jobs, again=True)
            seconds = time.perf_counter() - start
            if outcomes is None:  # answers wait for a try, so it takes half of the time at most
                self._retry_at = time.monotonic() + max(RETRY_SECONDS, seconds)
                return
            for _ in jobs:
                self._deferred.popleft()
            self._tell(jobs, outcomes, seconds)
        if before and not self._deferred:
            away = time.monotonic() - self._deferred_since
            _log.info("store.back after %.1f s", away)

    def _give_up(self) -> None:
        """At the end: what the database does not take within the patience is lost."""
        until = time.monotonic() + self._patience
        while self._deferred:
            self._retry_at = 0.0
            self._catch_up()
            left = until - time.monotonic()
            if not self._deferred or left <= 0:
                break
            time.sleep(min(RETRY_SECONDS, left))
        jobs = list(self._deferred)
        self._deferred.clear()
        if jobs:
            lost = StoreError("store: closed before the database took what was waiting")
            self._tell(jobs, [lost] * len(jobs), 0.0)

    def _supervised(
        self, work: Callable[[Connection], T], *, until: float = math.inf
    ) -> T | EntrogateError:
        """What the work returns, or its error: nothing may end this thread."""
        try:
            return self._transactions.run(work, until=until)
        except EntrogateError as error:  # meant for whoever waits
            return error
        except Exception as error:  # noqa: BLE001
            if not is_database_error(error):
                _log.exception("store.write_failed")
            failure = store_error(error, "write failed")
            failure.__cause__ = error
            return failure


def _dealt(heads: Sequence[TurnHead | None], jobs: Sequence[Job]) -> list[list[TurnHead | None]]:
    """The heads of all turns, by job."""
    each = iter(heads)
    return [[next(each) for _ in job.records] for job in jobs]


def _size(record: TurnRecord) -> int:
    tokens = len(record.prompt_token_ids) + 7 * len(record.capture)
    texts = len(record.new_messages) + len(record.response) + len(record.params)
    return 4 * tokens + texts + len(record.tools or b"")

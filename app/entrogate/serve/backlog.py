"""Background work with bounded concurrency and a bounded queue."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger("entrogate.serve")


class Backlog(Generic[T]):
    """Calls ``work`` with each piece while ``may_start`` allows it, up to ``concurrency`` at once.

    At most ``limit`` pieces are queued. Call `pump` when ``may_start`` may have changed. Nothing
    is started outside `running`.
    """

    def __init__(
        self,
        work: Callable[[T], Awaitable[None]],
        *,
        concurrency: int,
        limit: int,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._limit = limit
        self._may_start = may_start
        self._waiting: deque[T] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    @property
    def waiting(self) -> int:
        """Pieces that have not been started."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Is nothing queued or running?"""
        return not self._waiting and not self._tasks

    def put(self, piece: T, *, first: bool = False) -> T | None:
        """Queue a piece, with ``first`` ahead of all others. Returns the piece that was dropped.

        If the queue is full, that is this piece, or with ``first`` the last queued one.
        """
        if not self._open:
            return piece
        left_out: T | None = None
        if len(self._waiting) >= self._limit and not first:
            self.pump()  # may_start may have changed
            if len(self._waiting) >= self._limit:
                return piece
        elif len(self._waiting) >= self._limit:
            left_out = self._waiting.pop()
        if first:
            self._waiting.appendleft(piece)
        else:
            self._waiting.append(piece)
        self.pump()
        return left_out

    def pump(self) -> None:
        """Start what may be started."""
        while (
            self._open
            and self._waiting
            and len(self._tasks) < self._concurrency
            and self._may_start()
        ):
            task = asyncio.create_task(self._supervised(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Work on pieces while this is entered; at the end running ones are cancelled."""
        self._open = True
        self.pump()
        try:
            yield
        finally:
            self._open = False
            self._waiting.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.pump()

    async def _supervised(self, piece: T) -> None:
        try:
            await self._work(piece)
        except Exception:  # noqa: BLE001  (a task's supervisor)
            _log.exception("backlog.failed")

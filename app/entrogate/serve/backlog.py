"""Work that nobody waits for: some of it at a time, a bounded number of pieces waiting."""

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

    Of what waits, at most ``limit`` pieces are kept. Call `pump` when ``may_start`` may have
    changed. Nothing is started outside `running`.
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
        """Is nothing waiting or under way?"""
        return not self._waiting and not self._tasks

    def put(self, piece: T, *, first: bool = False) -> T | None:
        """Take a piece on, before all others with ``first``; what has no room is returned.

        That is the piece itself, or the last one that waits where it goes before it.
        """
        if not self._open:
            return piece
        left_out: T | None = None
        if len(self._waiting) >= self._limit and not first:
            self.pump()  # what waits may have become startable
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
        """Pieces are worked on while this is entered; what is left then is given up."""
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

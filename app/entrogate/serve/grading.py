"""Grades the shadows of trajectories that have an outcome but no gold, with a user's grader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from entrogate.errors import GraderError, StoreError
from entrogate.observe.shadows import ShadowMetrics
from entrogate.serve.backlog import Backlog
from entrogate.serve.graders import Grader
from entrogate.settings import ShadowSettings
from entrogate.store import Store

_log = logging.getLogger("entrogate.serve")


class Grading:
    """Grades trajectories in the background.

    A failure of the grader is logged and counted, and the shadow keeps the score that it had.
    """

    def __init__(
        self,
        store: Store,
        grader: Grader | None,
        metrics: ShadowMetrics,
        settings: ShadowSettings,
    ) -> None:
        self._store = store
        self._grader = grader
        self._metrics = metrics
        self._pending: dict[str, bool] = {}  # True: all of its shadows, though graded before
        self._backlog = Backlog(
            self._work, concurrency=settings.concurrency, limit=settings.queue_limit
        )

    @property
    def idle(self) -> bool:
        """Is nothing waiting or being graded?"""
        return self._backlog.idle

    def queue(self, trajectory_id: str, *, anew: bool = True) -> None:
        """Queue a trajectory that got an outcome, if there is a grader.

        With ``anew`` false (it got a shadow) only ungraded shadows are graded: otherwise each of
        many shadows would have all the others graded again.
        """
        if self._grader is None:
            return
        if trajectory_id in self._pending:
            self._pending[trajectory_id] |= anew
            return
        self._pending[trajectory_id] = anew
        if self._backlog.put(trajectory_id) is not None:
            self._pending.pop(trajectory_id, None)
            self._metrics.record_grader_failure("dropped")

    def queue_ungraded(self, trajectory_id: str) -> None:
        """Queue a trajectory that got a shadow, to grade what is not graded yet."""
        self.queue(trajectory_id, anew=False)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Grade queued trajectories while this is entered."""
        if self._grader is None:
            yield
            return
        async with self._grader, self._backlog.running():
            yield

    async def _work(self, trajectory_id: str) -> None:
        anew = self._pending.pop(trajectory_id)  # from now on it can be queued again
        grader = self._grader
        assert grader is not None
        try:
            for each in await self._store.shadows.to_grade(trajectory_id, anew=anew):
                try:
                    score = await grader.score(await asyncio.to_thread(each.asked))
                except GraderError as error:
                    self._metrics.record_grader_failure(error.kind)
                    _log.warning("shadow.ungraded turn=%s %s", each.turn_id, error)
                    continue
                if await self._store.shadows.grade(each.turn_id, score):
                    self._metrics.record_scores({"grader": 1})
        except StoreError as error:
            _log.warning("shadow.ungraded trajectory=%s %s", trajectory_id, error)

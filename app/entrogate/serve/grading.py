"""Asks the user's grader about shadows whose trajectory has an outcome and no gold."""

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
    """Grades trajectories, some at a time. A failure of the grader is logged and counted, and
    leaves the score that the shadow had."""

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

    def wish(self, trajectory_id: str, *, anew: bool = True) -> None:
        """A trajectory has got an outcome: grade it, if there is a grader.

        Without ``anew`` it has got a shadow, and those that were graded keep their score: else
        each of many shadows would have all the others graded again.
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

    def wish_for_new(self, trajectory_id: str) -> None:
        """A trajectory has got a shadow: grade what is not graded, if there is a grader."""
        self.wish(trajectory_id, anew=False)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Trajectories are graded while this is entered."""
        if self._grader is None:
            yield
            return
        async with self._grader, self._backlog.running():
            yield

    async def _work(self, trajectory_id: str) -> None:
        anew = self._pending.pop(trajectory_id)  # what comes from now on is a new wish
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

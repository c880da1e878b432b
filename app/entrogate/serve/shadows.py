"""Decodes shadow answers in the background, after client turns (docs/shadows.md)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager

from entrogate.errors import StoreError, UpstreamError
from entrogate.observe.shadows import ShadowOutcome
from entrogate.serve.backlog import Backlog
from entrogate.settings import ShadowSettings
from entrogate.turn.parts import Parts
from entrogate.turn.shadow import ShadowJob, decode_shadow, purpose_of, request_shadow
from entrogate.turn.state import Turn
from entrogate.types import ShadowPurpose
from entrogate.weights.leases import Lease

_log = logging.getLogger("entrogate.serve")
_MOST_BYTES = 64 * 2**20  # of queued shadows
_TRACE_HEADERS = ("traceparent", "tracestate")


class Shadows:
    """Queues and decodes the shadows of completed turns.

    Shadows wait while many client turns are running. Beyond a number of shadows or bytes they are
    dropped and counted. Audits go first. ``on_stored`` is called with the trajectory id of each
    stored shadow.
    """

    def __init__(
        self,
        parts: Parts,
        settings: ShadowSettings,
        *,
        reasoning_end: str,
        on_stored: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._reasoning_end = reasoning_end
        self._on_stored = on_stored
        self._turns = 0  # running client turns
        self._bytes = 0
        self._backlog = Backlog(
            self._work,
            concurrency=settings.concurrency,
            limit=settings.queue_limit,
            may_start=lambda: self._turns < settings.busy_turns,
        )
        parts.metrics.shadows.watch(lambda: self._backlog.waiting)

    @property
    def idle(self) -> bool:
        """Is no shadow waiting or being decoded?"""
        return self._backlog.idle

    @contextmanager
    def client_turn(self) -> Generator[None]:
        """Mark a client turn as running while this is entered."""
        self._turns += 1
        try:
            yield
        finally:
            self._turns -= 1
            self._backlog.pump()

    def take(self, turn: Turn, headers: Mapping[str, str]) -> None:
        """Queue the shadows of ``turn``, whose answer is complete.

        ``headers`` are those of its own requests to the model server.
        """
        sent = {name: value for name, value in headers.items() if name not in _TRACE_HEADERS}
        for leg, record in turn.stored:
            purpose = purpose_of(record, self._share_of)
            if purpose is None:
                continue
            job = request_shadow(turn, leg, record, purpose=purpose, headers=sent)
            if job is None:
                self._tell(purpose, ShadowOutcome.UNAVAILABLE)
            else:
                self._put(job)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Decode queued shadows while this is entered."""
        async with self._backlog.running():
            yield

    def _share_of(self, tool: str) -> float:
        return self._settings.tools.get(tool, self._settings.share)

    def _put(self, job: ShadowJob) -> None:
        if self._bytes + job.size_bytes > _MOST_BYTES:
            self._tell(job.purpose, ShadowOutcome.DROPPED)
            return
        self._bytes += job.size_bytes
        dropped = self._backlog.put(job, first=job.purpose is ShadowPurpose.AUDIT)
        if dropped is not None:
            self._bytes -= dropped.size_bytes
            self._tell(dropped.purpose, ShadowOutcome.DROPPED)

    async def _work(self, job: ShadowJob) -> None:
        outcome = ShadowOutcome.FAILED
        running = self._parts.weights.running
        lease = Lease(version=job.lease_version, name=None, chosen=False, running=running)
        try:
            outcome = await self._decode(job)
        finally:
            lease.release()
            self._bytes -= job.size_bytes
            self._tell(job.purpose, outcome)

    async def _decode(self, job: ShadowJob) -> ShadowOutcome:
        metrics = self._parts.metrics.shadows
        try:
            record = await decode_shadow(
                self._parts,
                job,
                max_tokens=self._settings.max_tokens,
                reasoning_end=self._reasoning_end,
            )
            if record is None:
                return ShadowOutcome.NO_ROOM
            metrics.record_decoded(tokens=len(record.capture), called=record.called)
            metrics.record_scores(await self._parts.store.shadows.add(record))
        except UpstreamError as error:
            _log.warning("shadow.failed turn=%s %s", job.turn_id, error)
            return ShadowOutcome.FAILED
        except StoreError as error:
            _log.warning("shadow.unstored turn=%s %s", job.turn_id, error)
            return ShadowOutcome.UNSTORED
        self._on_stored(job.trajectory_id)
        return ShadowOutcome.STORED

    def _tell(self, purpose: ShadowPurpose, outcome: ShadowOutcome) -> None:
        self._parts.metrics.shadows.record(purpose.value, outcome)

"""Keeps what is known of the model server true while it is restarted, replaced or upgraded.

What it can do is asked at the first turn. From then on a task of its own looks after it: it notices
by a cheap request when another model is served, and asks anew when the server was gone, when
captures stop arriving or come from another engine, and from time to time anyway. A turn keeps what
it was given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from entrogate.errors import UpstreamError, UpstreamUnavailable
from entrogate.upstream.capabilities import Capabilities
from entrogate.upstream.handshake import Identity

_log = logging.getLogger("entrogate.upstream")
_ANYWAY_SECONDS = 600.0  # a server behind a balancer can change without being gone
_PATIENCE_SECONDS = 10.0  # a turn's, for a server that was gone and whose abilities were known


class UpstreamWatch:
    """Knows the server's capabilities; ``ask`` finds them out and ``glance`` tells models apart.

    ``on_found`` is called with what was found, first and after every change.
    """

    def __init__(
        self,
        *,
        ask: Callable[[], Awaitable[Capabilities]],
        glance: Callable[[], Awaitable[Identity]],
        on_found: Callable[[Capabilities], None],
        interval_seconds: float,
    ) -> None:
        self.changes = 0
        self._ask = ask
        self._glance = glance
        self._on_found = on_found
        self._interval_seconds = interval_seconds
        self._found: Capabilities | None = None
        self._identity: Identity | None = None
        self._gone = False  # the server was not there: what is known may be of another one
        self._asking = asyncio.Lock()
        self._attempt: asyncio.Task[Capabilities] | None = None  # that turns wait for
        self._woken = asyncio.Event()

    async def capabilities(self) -> Capabilities:
        """What the server can do. Waits only where that is not known, or the server was gone.

        Raises UpstreamError when it cannot be found out.
        """
        if self._found is not None and not self._gone:
            return self._found
        known = self._found
        if known is None:
            return await self._renewed()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):  # the wait for others who ask included
                return await self._renewed()
        except TimeoutError:  # it answers other requests, or will fail this one by itself
            return known

    async def _renewed(self) -> Capabilities:
        """Ask once for all who wait: they share the answer, or the fault."""
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = asyncio.create_task(self._told(), name="upstream-asked")
            attempt.add_done_callback(self._ended)
        return await asyncio.shield(attempt)

    def _ended(self, attempt: asyncio.Task[Capabilities]) -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # known to those who still wait, if anybody does

    async def _told(self) -> Capabilities:
        """Ask, unless the task that looks after the server has just been told."""
        async with self._asking:
            if self._found is not None and not self._gone:
                return self._found
            return await self._renew()

    def lost(self) -> None:
        """A connection was refused: whoever answers next may be another server."""
        if self._found is not None and not self._gone:
            self._gone = True
            self._woken.set()

    def suspect(self, why: str) -> None:
        """An answer was not what this server's answers are: ask anew, in the background."""
        if self._found is not None and not self._woken.is_set():
            _log.info("upstream.suspected %s", why)
            self._woken.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Look after the server while the block runs."""
        task = asyncio.create_task(self._look_after(), name="upstream-watch")
        try:
            yield
        finally:
            tasks = [task] if self._attempt is None else [task, self._attempt]
            for each in tasks:
                each.cancel()
            await asyncio.wait(tasks)

    async def _look_after(self) -> None:
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        while True:
            with suppress(TimeoutError):
                soon = self._interval_seconds / 5 if self._gone else self._interval_seconds
                await asyncio.wait_for(self._woken.wait(), soon)
            woken = self._woken.is_set()
            if self._found is None:  # nobody could ask yet: the first turn does
                self._woken.clear()
                continue
            try:
                if woken or self._gone or clock() - asked_at > _ANYWAY_SECONDS or await self._new():
                    async with self._asking:
                        await self._renew()
                    asked_at = clock()
            except UpstreamUnavailable:
                self._gone = True
            except UpstreamError as error:
                _log.warning("upstream.not_understood %s", error)
            except Exception:  # noqa: BLE001  (supervises its task: the next round may do better)
                _log.exception("upstream.not_watched")
            if woken:  # one question an interval, however many turns wonder
                await asyncio.sleep(self._interval_seconds / 5)
                self._woken.clear()

    async def _new(self) -> bool:
        """Is another model served than before?"""
        return await self._glance() != self._identity

    async def _renew(self) -> Capabilities:
        """Ask, and use what was found. The lock is held."""
        identity = await self._glance()
        found = await self._ask()
        before, self._found = self._found, found
        self._identity, self._gone = identity, False
        if found != before:
            if before is not None:
                self.changes += 1
                _log.warning(
                    "upstream.changed model=%s estimator=%s gate_points=%s (before: %s %s %s)",
                    found.model,
                    found.estimator,
                    ",".join(found.gate_points) or "none",
                    before.model,
                    before.estimator,
                    ",".join(before.gate_points) or "none",
                )
            self._on_found(found)
        return found

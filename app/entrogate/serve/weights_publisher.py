"""Publishing weights: loaded into vLLM, stored, routed to; rolled back, drained, unloaded.

What is published is in the store, so that it outlives this process and replicas share it; what
vLLM serves is asked of vLLM. Every few seconds the two are brought in line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from entrogate.errors import (
    ConfigError,
    EntrogateError,
    RequestError,
    UpstreamError,
    UpstreamUnavailable,
)
from entrogate.serve.refreshing import Refreshing
from entrogate.settings import WeightsSettings
from entrogate.store import Store
from entrogate.types import PublishedWeights, WeightsState
from entrogate.upstream.adapters import VllmAdapters
from entrogate.upstream.lora import Adapter
from entrogate.weights.leases import Weights
from entrogate.weights.routing import add, find, roll_back, set_share

_log = logging.getLogger("entrogate.serve")
_RETRY_SECONDS = 30.0  # between two tries to load what vLLM refused
_LOOK_SECONDS = 0.05  # between two looks whether a version has drained


class WeightsPublisher:
    """Changes the weights in use. ``base_model`` asks what vLLM calls the base model."""

    def __init__(
        self,
        *,
        store: Store,
        adapters: VllmAdapters,
        weights: Weights,
        settings: WeightsSettings,
        base_model: Callable[[], Awaitable[str]],
    ) -> None:
        self.weights = weights
        self.problems: dict[str, str] = {}  # by version: why vLLM does not serve it
        self._store = store
        self._adapters = adapters
        self._settings = settings
        self._base_model = base_model
        self._loading = asyncio.Lock()  # one change of what vLLM holds at a time
        self._changes = 0
        self._rounds = Refreshing(self.refresh, event="weights.not_refreshed")
        self._retry_at: dict[str, float] = {}
        self._drains: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Take up the stored routing, and keep it in line with store and vLLM in the block."""
        async with self._adapters:
            await self._rounds.round()
            task = asyncio.create_task(self._keep_up(), name="weights")
            try:
                yield
            finally:
                for each in (task, *self._drains.values()):
                    each.cancel()
                    with suppress(asyncio.CancelledError):
                        await each

    async def publish(
        self, folder: str, *, share: float | None = None, name: str | None = None
    ) -> PublishedWeights:
        """Load the LoRA in ``folder`` and route this share of new trajectories to it.

        Routing changes only when vLLM has said a token with it. Raises RequestError or
        UpstreamError, and then nothing has changed. A version that is published already only gets
        the share.
        """
        async with self._loading:
            model = await self._base_model()
            adapter = await asyncio.to_thread(_read, folder)
            now = time.time()
            new = PublishedWeights(
                model=model,
                version=adapter.version,
                name=name or f"{model}-{adapter.version}",
                folder=str(adapter.folder),
                rank=adapter.rank,
                share=0.0,
                promoted_at=None,
                state=WeightsState.SERVING,
                published_at=now,
                updated_at=now,
            )

            def change(published: Sequence[PublishedWeights]) -> Sequence[PublishedWeights]:
                return add(published, new, share, now)

            wanted = change(self.weights.published)[0]  # refused before vLLM is asked
            loaded = await self._load(wanted, adapter)
            try:
                published = await self._store.change_weights(model, change)
            except EntrogateError:
                if loaded:
                    with suppress(UpstreamError):
                        await self._adapters.unload(wanted.name)
                raise
            self._use(published)
            self._served(wanted.version)
        _log.info("weights.published version=%s name=%s", wanted.version, wanted.name)
        return find(published, wanted.version)

    async def set_share(self, version: str, share: float) -> PublishedWeights:
        """Route this share of new trajectories to a published version; 1 promotes it."""
        now = time.time()
        model = await self._base_model()
        self._use(
            await self._store.change_weights(model, lambda p: set_share(p, version, share, now))
        )
        found = find(self.weights.published, version)
        _log.info("weights.shared version=%s share=%g", found.version, share)
        return found

    async def roll_back(self, version: str) -> PublishedWeights:
        """Route nothing to a version from now on; vLLM unloads it after its last turn."""
        now = time.time()
        model = await self._base_model()
        self._use(await self._store.change_weights(model, lambda p: roll_back(p, version, now)))
        found = find(self.weights.published, version)
        _log.info("weights.rolled_back version=%s", found.version)
        self._drain(found)
        return found

    async def refresh(self) -> None:
        """Bring the routing in line with the store, and vLLM in line with the routing.

        Raises StoreError or UpstreamError; the routing stays as it was then.
        """
        model, changes = await self._base_model(), self._changes
        published = await self._store.weights(model)
        if changes == self._changes:  # else what was read is older than what is in use
            self.weights.use(published)
        if not self.weights.published:
            return
        async with self._loading:
            served = await self._adapters.names()
            for each in self.weights.published:
                if each.state is WeightsState.DRAINING:
                    self._drain(each)
                elif each.name in served:
                    self._served(each.version)
                else:
                    self.weights.mark(each.version, ready=False)
                    await self._load_again(each)

    async def _keep_up(self) -> None:
        lost = self.weights.lost
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), self._settings.poll_interval_seconds)
            lost.clear()
            await self._rounds.round()

    async def _load(self, wanted: PublishedWeights, adapter: Adapter) -> bool:
        """Have vLLM serve ``wanted``; False when it did already."""
        if wanted.name in await self._adapters.names():
            known = {each.version for each in self.weights.published}
            if wanted.version not in wanted.name and wanted.version not in known:
                raise RequestError(
                    f"vLLM already serves something as {wanted.name}: choose another name",
                    status=409,
                    code="conflict",
                )
            return False
        try:
            await self._adapters.load(adapter, wanted.name)
        except ConfigError as error:
            raise RequestError(str(error), param="folder") from None
        return True

    async def _load_again(self, lost: PublishedWeights) -> None:
        """Load what vLLM once served; what cannot be loaded gets no requests."""
        if time.monotonic() < self._retry_at.get(lost.version, 0.0):
            return
        try:
            adapter = await asyncio.to_thread(Adapter.read, Path(lost.folder))
            if adapter.version != lost.version:
                raise ConfigError(f"{lost.folder} holds other weights now: {adapter.version}")
            await self._adapters.load(adapter, lost.name)
        except UpstreamUnavailable:
            raise
        except (ConfigError, UpstreamError) as error:
            self._retry_at[lost.version] = time.monotonic() + _RETRY_SECONDS
            if self.problems.get(lost.version) != str(error):
                _log.error(
                    "weights.not_served version=%s gets no requests: %s", lost.version, error
                )
            self.problems[lost.version] = str(error)
        else:
            _log.warning("weights.loaded_again version=%s name=%s", lost.version, lost.name)
            self._served(lost.version)

    def _served(self, version: str) -> None:
        self.problems.pop(version, None)
        self._retry_at.pop(version, None)
        self.weights.mark(version, ready=True)

    def _use(self, published: Sequence[PublishedWeights]) -> None:
        self._changes += 1
        self.weights.use(published)

    def _drain(self, leaving: PublishedWeights) -> None:
        version = leaving.version
        if version not in self._drains:
            task = asyncio.create_task(self._unload(leaving), name=f"drain-{version}")
            self._drains[version] = task
            task.add_done_callback(lambda _: self._drains.pop(version, None))

    async def _unload(self, leaving: PublishedWeights) -> None:
        """Wait for the last turn, or for the time limit; then unload and forget."""
        running, version = self.weights.running, leaving.version
        until = leaving.updated_at + self._settings.drain_timeout_seconds
        while running[version] and time.time() < until:  # noqa: ASYNC110  (a turn takes seconds)
            await asyncio.sleep(_LOOK_SECONDS)
        if running[version]:
            _log.warning("weights.drain_timeout version=%s turns=%d", version, running[version])
        try:
            async with self._loading:
                if leaving.name in await self._adapters.names():
                    await self._adapters.unload(leaving.name)
                self._use(await self._store.delete_weights(leaving.model, version))
        except EntrogateError as error:
            _log.warning("weights.not_unloaded version=%s, trying again: %s", version, error)
        else:
            self.problems.pop(version, None)
            _log.info("weights.unloaded version=%s", version)


def _read(folder: str) -> Adapter:
    if not Path(folder).is_absolute():
        raise RequestError(f"folder is {folder!r}; want an absolute path", param="folder")
    try:
        return Adapter.read(Path(folder))
    except ConfigError as error:
        raise RequestError(str(error), param="folder") from None

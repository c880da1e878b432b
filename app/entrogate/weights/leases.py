"""The weights in use: the routing in force, and how many turns run on each version."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from entrogate.types import BASE_WEIGHTS, PublishedWeights
from entrogate.weights.routing import Routes, Target


@dataclass(slots=True, kw_only=True)
class Lease:
    """Keeps weights loaded for one turn, until it is released.

    ``version`` is None where the client named a model that is not published here, and ``name`` is
    None where the request goes on under the name that the client used.
    """

    version: str | None
    name: str | None
    chosen: bool  # by the gateway, so that it may choose again
    running: Counter[str]
    released: bool = False

    def __post_init__(self) -> None:
        if self.version is not None:
            self.running[self.version] += 1

    def release(self) -> None:
        """The turn is over. Safe to call twice."""
        if self.version is not None and not self.released:
            self.running[self.version] -= 1
        self.released = True


class Weights:
    """What is published and served now. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.published: Sequence[PublishedWeights] = ()
        self.ready: set[str] = set()  # versions that the model server serves
        self.routes = Routes()
        self.running: Counter[str] = Counter()
        self.lost = asyncio.Event()  # the model server did not know weights that were ready

    def use(self, published: Sequence[PublishedWeights]) -> None:
        """Route by ``published`` from now on."""
        self.published = published
        self.ready &= {each.version for each in published}
        self._route()

    def mark(self, version: str, *, ready: bool) -> None:
        """Note whether the model server serves this version; only then is it routed to."""
        if ready != (version in self.ready):
            self.ready ^= {version}
            self._route()

    def lease(
        self, model: str, base_models: Collection[str], trajectory_id: str, began_on: str
    ) -> Lease:
        """Weights for a turn that asks for ``model``: by share for the base model, else as named.

        ``began_on`` is the version of the parent turn, empty for the first one.
        """
        if not model or model in base_models:
            return self._lease(self.routes.target(trajectory_id, began_on))
        version = self.routes.version_of(model)
        return Lease(version=version, name=None, chosen=False, running=self.running)

    def instead_of(self, lease: Lease) -> Lease | None:
        """Stable weights for a turn whose weights the model server no longer knows.

        None where nothing else may answer: the client named the model, or it is the base.
        """
        if not lease.chosen or lease.version is None or lease.version == BASE_WEIGHTS:
            return None
        lease.release()
        self.mark(lease.version, ready=False)
        self.lost.set()
        return self._lease(self.routes.stable)

    def _lease(self, target: Target) -> Lease:
        return Lease(version=target.version, name=target.name, chosen=True, running=self.running)

    def _route(self) -> None:
        self.routes = Routes(self.published, self.ready)

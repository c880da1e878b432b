"""The policies of an open store: which are kept, which are in force by an admin's order."""

from __future__ import annotations

from collections.abc import Sequence

from entrogate.gate.arms import Arm, Order
from entrogate.store.admin.administration import Run
from entrogate.store.read.decisions import read_policy
from entrogate.store.read.overview import read_figures
from entrogate.store.read.policies import KeptPolicy, read_versions
from entrogate.store.read.rows import TrajectoryFigures
from entrogate.store.write.policies import (
    PolicyChange,
    put_in_force,
    read_orders,
    remember_policy,
)


class PolicyRecords:
    """``shared``: other gateways may order something on the same store."""

    def __init__(self, *, shared: bool, write: Run, read: Run) -> None:
        self.shared = shared
        self._write = write
        self._read = read

    async def remember(self, version: str, name: str, mode: str, text: str) -> None:
        """Keep the policy of this version, so that its decisions can be replayed."""
        await self._write(lambda connection: remember_policy(connection, version, name, mode, text))

    async def put_in_force(self, change: PolicyChange) -> None:
        """Store the change; StoreError when it is not stored."""
        await self._write(lambda connection: put_in_force(connection, change))

    async def orders(self) -> dict[Arm, Order]:
        """What admins ordered, by arm."""
        return await self._read(read_orders)

    async def versions(self) -> list[KeptPolicy]:
        """All versions that are kept, the latest first."""
        return await self._read(read_versions)

    async def figures(self, tenant: str | None, window: int) -> Sequence[TrajectoryFigures]:
        """Of the latest ``window`` trajectories of ``tenant`` (None: of all)."""
        return await self._read(lambda connection: read_figures(connection, tenant, window))

    async def text(self, version: str) -> str | None:
        """The policy of this version as YAML (JSON, which is YAML); None where it is not kept."""
        return await self._read(lambda connection: read_policy(connection, version))

"""Fuses: evaluate the audits of suppressed calls, and only observe tools with too many losses.

A policy with an `audit` lets a share of what it suppresses through (`gate.decide`). Where the
answer without the call is found to be wrong although the observed one is right, the call was
needed. The share of such losses is bounded at all times (`risk.sequence.watch`), for each policy
version and tool; when its lower bound passes ``max_loss``, the fuse blows: from then on turns that
touch the tool are observed (`Judge.mode_for`), until somebody arms it again.

What is known is in the store, so all replicas and a restarted gateway act alike. Each of them
computes it again from the audits every few seconds; they get the same result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from entrogate.background import beside
from entrogate.errors import UnknownRecord
from entrogate.gate.schema import Audit, Policy
from entrogate.observe.fuses import FuseFigures, FuseMetrics
from entrogate.risk.sequence import watch
from entrogate.serve.refreshing import Refreshing
from entrogate.store.admin.audit import GATEWAY, Act, Deed
from entrogate.store.read.fuses import Audits, Fuse, FuseState
from entrogate.store.write.fuses import FuseRecords

_log = logging.getLogger("entrogate.serve")
_BUSY_SHARE = 0.05  # of the time may be spent on reading audits


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The current state of a fuse, with the policy and audit that it belongs to."""

    policy: Policy
    audit: Audit
    fuse: Fuse
    waiting: int  # audits that are not judged

    @property
    def estimate(self) -> float | None:
        """The share of judged audits that were losses."""
        return self.fuse.losses / self.fuse.n if self.fuse.n else None

    def figures(self) -> FuseFigures:
        """As metrics show it."""
        return FuseFigures(
            policy=self.policy.name,
            version=self.policy.version,
            tool=self.fuse.tool,
            blown=self.fuse.state is FuseState.BLOWN,
            audits=self.fuse.n,
            waiting=self.waiting,
            losses=self.fuse.losses,
            estimate=self.estimate,
            lower=self.fuse.lower,
            upper=self.fuse.upper,
            max_loss=self.audit.max_loss,
        )


class Fuses:
    """Keeps the fuses of the policies in use; ``policies`` lists these, ``metrics`` shows them."""

    def __init__(
        self,
        *,
        records: FuseRecords,
        policies: Callable[[], Sequence[Policy]],
        metrics: FuseMetrics,
        interval_seconds: float,
    ) -> None:
        self._records = records
        self._policies = policies
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._standings: dict[str, tuple[Standing, ...]] = {}  # by policy version
        self._refreshing = asyncio.Lock()
        self._woken = asyncio.Event()
        self._rounds = Refreshing(self.refresh, event="fuses.not_refreshed")

    @property
    def standings(self) -> list[Standing]:
        """How the fuses of the policies in use stand, as far as they were read."""
        versions = dict.fromkeys(policy.version for policy in self._policies())
        return [each for version in versions for each in self._standings.get(version, ())]

    def blown(self, policy: Policy) -> frozenset[str]:
        """The tools that are only observed under ``policy``.

        All that it audits while their fuses have not been read yet: one of them may be blown.
        """
        if policy.audit is None:
            return frozenset()
        standings = self._standings.get(policy.version)
        if standings is None:
            return frozenset(audited_tools(policy))
        blown = (each.fuse for each in standings if each.fuse.state is FuseState.BLOWN)
        return frozenset(fuse.tool for fuse in blown)

    def wake(self) -> None:
        """Other policies are in use: look at their fuses soon."""
        self._woken.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Read the stored fuses, then keep them up to date while the block runs."""
        await self._rounds.round()
        async with beside(self._follow(), name="fuses"):
            yield

    async def refresh(self) -> None:
        """Compute how the fuses of the policies in use stand, and store what has changed."""
        async with self._refreshing:
            policies = self._policies()
            for policy in policies:
                if policy.audit is not None:
                    await self._refresh(policy, policy.audit)
            used = {policy.version for policy in policies}  # another may come back changed
            self._standings = {v: each for v, each in self._standings.items() if v in used}
            self._metrics.set([each.figures() for each in self.standings])

    async def arm(
        self, tool: str, version: str | None, *, actor: str, tenant: str
    ) -> list[Standing]:
        """Arm the fuses of ``tool``: under ``version``, or under each policy in use.

        Raises UnknownRecord where no policy in use audits the tool, StoreError.
        """
        armed = [
            policy
            for policy in self._policies()
            if version in (None, policy.version) and tool in audited_tools(policy)
        ]
        if not armed:
            where = "a policy in use" if version is None else f"policy {version!r}"
            raise UnknownRecord(f"no fuse of tool {tool!r} under {where}")
        for policy in armed:
            detail = {"policy": policy.name, "version": policy.version}
            deed = Deed(actor=actor, action=Act.ARM_FUSE, target=tool, tenant=tenant, detail=detail)
            await self._records.arm(policy.version, tool, deed)
            _log.warning("fuse.armed tool=%s policy=%s %s", tool, policy.name, policy.version)
        await self.refresh()
        versions = {policy.version for policy in armed}
        return [
            each
            for each in self.standings
            if each.fuse.tool == tool and each.policy.version in versions
        ]

    async def _follow(self) -> None:
        pause = self._interval_seconds
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()
            began = time.monotonic()
            await self._rounds.round()
            pause = max(self._interval_seconds, (time.monotonic() - began) / _BUSY_SHARE)

    async def _refresh(self, policy: Policy, audit: Audit) -> None:
        audits = await self._records.audits(policy.version)
        found = await asyncio.to_thread(standings_of, policy, audit, audits)
        before = {each.fuse.tool: each for each in self._standings.get(policy.version, ())}
        # In force before it is stored: a store that takes nothing now must not keep a tool armed.
        self._standings[policy.version] = tuple(found)
        for place, standing in enumerate(found):
            fuse = standing.fuse
            if fuse.state is FuseState.BLOWN and not _is_blown(before.get(fuse.tool)):
                _log.error("fuse.blown %s", _described(standing))
            stored = audits.fuses.get(fuse.tool)
            if fuse == stored or (stored is None and fuse.n == 0):
                continue
            detail = _detail(standing)
            deed = Deed(actor=GATEWAY, action=Act.BLOW_FUSE, target=fuse.tool, detail=detail)
            found[place] = replace(standing, fuse=await self._records.save(fuse, deed))
        self._standings[policy.version] = tuple(found)


def audited_tools(policy: Policy) -> list[str]:
    """The tools whose suppressed calls are audited, in the order of the policy."""
    if policy.audit is None:
        return []
    rules = {tool: policy.rule(tool) for tool in policy.tools}
    return [tool for tool, rule in rules.items() if rule is not None and rule.threshold is not None]


def standings_of(policy: Policy, audit: Audit, audits: Audits) -> list[Standing]:
    """How the fuses of ``policy`` stand by what is stored of it."""
    return [_standing(policy, audit, audits, tool) for tool in audited_tools(policy)]


def _standing(policy: Policy, audit: Audit, audits: Audits, tool: str) -> Standing:
    counted = audits.counted(tool, pooled=audit.pooled)
    outcomes = [each.lost for each in counted if each.lost is not None]
    stored = audits.fuses.get(tool)
    seen = watch(outcomes, audit.delta)
    blown = seen.lower > audit.max_loss or (stored is not None and stored.state is FuseState.BLOWN)
    fuse = Fuse(
        policy_version=policy.version,
        tool=tool,
        state=FuseState.BLOWN if blown else FuseState.ARMED,
        armed_at=audits.now if stored is None else stored.armed_at,
        armed_sequence=0 if stored is None else stored.armed_sequence,
        changed_at=audits.now if stored is None else stored.changed_at,
        n=seen.n,
        losses=seen.losses,
        lower=seen.lower if seen.n else None,
        upper=seen.upper if seen.n else None,
    )
    return Standing(policy=policy, audit=audit, fuse=fuse, waiting=len(counted) - len(outcomes))


def _is_blown(standing: Standing | None) -> bool:
    return standing is not None and standing.fuse.state is FuseState.BLOWN


def _detail(standing: Standing) -> dict[str, Any]:
    fuse = standing.fuse
    return {
        "policy": standing.policy.name,
        "version": standing.policy.version,
        "audits": fuse.n,
        "losses": fuse.losses,
        "lower": fuse.lower,
        "max_loss": standing.audit.max_loss,
    }


def _described(standing: Standing) -> str:
    detail = {"tool": standing.fuse.tool, **_detail(standing)}
    return " ".join(f"{name}={value}" for name, value in detail.items())

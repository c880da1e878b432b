"""The policies in force: read from files, ordered by admins, changed while turns run.

A turn asks once, when it begins, and keeps its policy. A change is checked and stored before it is
in force, so every decision can be replayed. Invalid files change nothing and are reported by the
log, a metric and `/ready`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from entrogate.background import beside
from entrogate.errors import ConfigError, EntrogateError, RequestError
from entrogate.gate.arms import Arm, Arms, Order, arms_of
from entrogate.gate.policy import parse_policy
from entrogate.gate.schema import Policy
from entrogate.observe.metrics import Metrics, PolicyInForce
from entrogate.serve.policy_files import Look, PolicyFiles
from entrogate.settings import GateSettings
from entrogate.store import Store
from entrogate.store.admin.audit import GATEWAY, Act, Deed
from entrogate.store.write.policies import PolicyChange
from entrogate.types import Mode

_log = logging.getLogger("entrogate.serve")
_PAUSE_SECONDS = 0.1  # between two looks at the files, where somebody waits for them
_LOOKS = 50


class Policies:
    """Gives each new turn its policy.

    ``on_change``: called in the event loop after every change of what is in force.
    """

    def __init__(
        self, settings: GateSettings, *, files: PolicyFiles, store: Store, metrics: Metrics
    ) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.problem: str | None = None  # why the files are not what is in force
        self._settings = settings
        self._files = files
        self._store = store
        self._metrics = metrics
        self._look, self._given = files.first  # the latest look dealt with, the latest good one
        self._orders: Mapping[Arm, Order] = {}
        self._known: Mapping[str, Policy] = {}  # those that the orders name, by version
        self._changing = asyncio.Lock()
        self._woken = asyncio.Event()
        self._arms = arms_of(self._given, {}, {})
        self._show()

    # What turns and pages ask.

    @property
    def arms(self) -> Arms:
        """The policies in force at this moment."""
        return self._arms

    @property
    def main(self) -> Policy:
        """The main policy."""
        return self._arms.main

    def in_force(self) -> tuple[Policy, ...]:
        """The main policy, then the one on trial if there is one."""
        return self._arms.in_force

    def policy_for(self, trajectory_id: str, began_on: str = "") -> Policy:
        """What decides on a new turn of this trajectory; see `Arms.policy_for`."""
        return self._arms.policy_for(trajectory_id, began_on)

    def mode_of(self, policy: Policy) -> Mode:
        """What the gate may do under ``policy``: the setting, where it is given, else its own."""
        return self._settings.mode or policy.mode

    def is_ordered(self, arm: Arm) -> bool:
        """Whether an admin's order decides on this arm, and not the settings."""
        return arm in self._orders

    def parse(self, text: str, label: str) -> Policy:
        """The policy in ``text``, under the rules of this gateway. Raises ConfigError."""
        return parse_policy(text, label, can_force=self._files.can_force)

    async def find(self, version: str) -> Policy | None:
        """The policy of a version that is kept; None where it is not. Raises ConfigError for one
        that this gateway cannot use."""
        for policy in self.in_force():
            if policy.version == version:
                return policy
        text = await self._store.policies.text(version)
        return None if text is None else self.parse(text, f"policy version {version}")

    # What admins ask.

    async def order(self, arm: Arm, policy: Policy, share: float = 0.0, *, actor: str) -> None:
        """Put ``policy`` in force in this place; ``share`` is that of a trial.

        Raises RequestError where the other arm has the same policy.
        """
        async with self._changing:
            await self._follow()
            other = self._arms.trial if arm is Arm.MAIN else self._arms.main
            if other is not None and other.version == policy.version:
                now = "on trial: promote it" if arm is Arm.MAIN else "in force as the main policy"
                raise _conflict(f"{policy.name} {policy.version} is already {now}")
            await self._obey([self._ordered(arm, policy.version, share)], policy, actor)

    async def set_share(self, share: float, *, actor: str) -> None:
        """Give the trial another share. RequestError: nothing is on trial."""
        async with self._changing:
            await self._follow()
            trial = self._on_trial()
            await self._obey([self._ordered(Arm.TRIAL, trial.version, share)], trial, actor)

    async def promote(self, *, actor: str) -> None:
        """Make the policy on trial the main one. RequestError: nothing is on trial."""
        async with self._changing:
            await self._follow()
            trial = self._on_trial()
            orders = [self._ordered(Arm.MAIN, trial.version), self._ordered(Arm.TRIAL, "")]
            await self._obey(orders, trial, actor, Act.PROMOTE)

    async def withdraw(self, *, actor: str) -> None:
        """End the trial; its trajectories go on under the main policy. RequestError: none runs."""
        async with self._changing:
            await self._follow()
            await self._obey([self._ordered(Arm.TRIAL, "")], self._on_trial(), actor)

    async def reload(self, *, actor: str) -> None:
        """Go back to what the files say now, whatever was ordered before.

        Raises RequestError where they cannot be used, StoreError; nothing has changed then.
        """
        look = await self._steady(_PAUSE_SECONDS)
        async with self._changing:
            try:
                await self._take(look, actor=actor, orders=False)
            except ConfigError as error:
                message = f"what is in force stays: {error}"
                raise RequestError(message, status=409, code="policy_invalid") from None

    # The life of the server.

    def reload_soon(self) -> None:
        """Read the files again, in the background: for a signal, also before the server runs."""
        self._woken.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Take up what was ordered, and every change while the block runs. Raises StoreError."""
        given = self._arms
        async with self._changing:
            await self._take(self._look, actor=GATEWAY, orders=True)
        if self._arms == given:  # else it has been told
            self._tell()
        async with beside(self._keep_up(), name="policies"):
            yield

    async def _keep_up(self) -> None:
        looks = self._settings.watch_policy or self._store.policies.shared
        while True:
            with suppress(TimeoutError):
                seconds = self._settings.watch_interval_seconds if looks else None
                await asyncio.wait_for(self._woken.wait(), seconds)
            asked = self._woken.is_set()
            self._woken.clear()
            try:
                await self._catch_up(asked=asked)
            except ConfigError:
                pass  # `_take` has said so
            except EntrogateError as error:
                self._retry(error, asked=asked)
            except Exception:  # noqa: BLE001  (supervises its task: the next round may do better)
                _log.exception("policy.not_reloaded")

    def _retry(self, error: EntrogateError, *, asked: bool) -> None:
        """The store is away; others say so. What was asked for once is asked for again."""
        _log.warning("policy.not_followed %s", error)
        if asked:
            self._fail(str(error))
            later = self._settings.watch_interval_seconds
            asyncio.get_running_loop().call_later(later, self._woken.set)

    async def _catch_up(self, *, asked: bool) -> None:
        """Take up what the files say, and what other gateways were told."""
        look = self._look
        if asked:
            look = await self._steady(_PAUSE_SECONDS)
        elif self._settings.watch_policy and await asyncio.to_thread(self._files.look) != look:
            look = await self._steady(self._settings.watch_interval_seconds)
        async with self._changing:
            if asked or look != self._look:
                await self._take(look, actor=GATEWAY, orders=True)
            else:
                await self._follow()

    async def _steady(self, pause_seconds: float) -> Look:
        """What two looks in a row found: one alone may meet a file that is being written."""
        look = await asyncio.to_thread(self._files.look)
        for _ in range(_LOOKS):
            await asyncio.sleep(pause_seconds)
            again = await asyncio.to_thread(self._files.look)
            if again == look:
                return look
            look = again
        named = ", ".join(self._files.named)
        return Look(problem=f"{named}: changed at each of {_LOOKS} looks; is it being written?")

    # One change at a time: the lock is held from here on.

    async def _take(self, look: Look, *, actor: str, orders: bool) -> None:
        """Use what the files say, with what was ordered or without it. Raises ConfigError."""
        try:
            given = await asyncio.to_thread(self._files.given, look)
        except ConfigError as error:
            self._look = look  # it is said once
            self._fail(str(error))
            raise
        stored = await self._store.policies.orders()
        held = {arm: each for arm, each in stored.items() if orders and each.holds(given)}
        ended = [each for arm, each in stored.items() if arm not in held]
        held, known = await self._usable(held)
        arms = arms_of(given, held, known)
        await self._store.policies.put_in_force(self._change(arms, actor, ended=ended))
        for each in ended:
            _log.warning("policy.order_ended arm=%s version=%s", each.arm, each.version or "none")
        self._look, self._given = look, given
        self._orders, self._known = held, known
        self._mend()
        self._use(arms)

    async def _follow(self) -> None:
        """Take up what another gateway on the same store was told."""
        if not self._store.policies.shared:
            return
        stored = await self._store.policies.orders()
        held = {arm: each for arm, each in stored.items() if each.holds(self._given)}
        if held != self._orders:
            self._orders, self._known = await self._usable(held)
            self._use(arms_of(self._given, self._orders, self._known))

    async def _obey(
        self, orders: list[Order], policy: Policy, actor: str, act: Act = Act.POLICY
    ) -> None:
        held = {**self._orders, **{order.arm: order for order in orders}}
        known = {**self._known, policy.version: policy}
        arms = arms_of(self._given, held, known)
        change = self._change(arms, actor, act=act, ordered=orders)
        await self._store.policies.put_in_force(change)
        self._orders, self._known = held, known
        self._use(arms)

    async def _usable(
        self, held: Mapping[Arm, Order]
    ) -> tuple[dict[Arm, Order], dict[str, Policy]]:
        """The orders that this gateway can follow, and the policies that they name."""
        usable: dict[Arm, Order] = {}
        known: dict[str, Policy] = {}
        for arm, order in held.items():
            if order.version:
                try:
                    policy = await self.find(order.version)
                except ConfigError as error:
                    _log.error("policy.order_unusable arm=%s %s", arm, error)
                    continue
                if policy is None:
                    _log.error("policy.order_unusable arm=%s version=%s", arm, order.version)
                    continue
                known[order.version] = policy
            usable[arm] = order
        return usable, known

    def _ordered(self, arm: Arm, version: str, share: float = 0.0) -> Order:
        return Order(
            arm=arm,
            version=version,
            share=share,
            instead_of=self._given.mark(arm),
            ordered_at=time.time(),
        )

    def _on_trial(self) -> Policy:
        if self._arms.trial is None:
            raise RequestError("no policy is on trial", status=404, code="no_trial")
        return self._arms.trial

    def _change(
        self,
        arms: Arms,
        actor: str,
        *,
        act: Act = Act.POLICY,
        ordered: list[Order] | None = None,
        ended: list[Order] | None = None,
    ) -> PolicyChange:
        """What is stored of the change to ``arms``."""
        main, trial = arms.main, arms.trial
        detail = {"name": main.name, "mode": self.mode_of(main).value}
        deed = None
        if trial is not None:
            of_trial = {"name": trial.name, "mode": self.mode_of(trial).value, "share": arms.share}
            deed = Deed(actor=actor, action=Act.TRIAL, target=trial.version, detail=of_trial)
        return PolicyChange(
            policies=arms.in_force,
            main=Deed(actor=actor, action=act, target=main.version, detail=detail),
            trial=deed,
            ordered=ordered or (),
            ended=ended or (),
        )

    def _use(self, arms: Arms) -> None:
        if arms == self._arms:
            return
        self._arms = arms
        self._metrics.record_policy_reload("changed")
        self._tell()
        for changed in self.on_change:
            changed()

    def _tell(self) -> None:
        for arm, policy in self._arms.items():
            share = self._arms.share_of(arm)
            mode = self.mode_of(policy)
            _log.info(
                "policy.in_force arm=%s name=%s version=%s mode=%s share=%g",
                arm,
                policy.name,
                policy.version,
                mode,
                share,
            )
        self._show()

    def _show(self) -> None:
        self._metrics.set_policies(
            [
                PolicyInForce(
                    arm=arm.value,
                    name=policy.name,
                    version=policy.version,
                    mode=self.mode_of(policy),
                    share=self._arms.share_of(arm),
                )
                for arm, policy in self._arms.items()
            ]
        )

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            _log.error("policy.not_reloaded what is in force stays: %s", _one_line(problem))
            self._metrics.record_policy_reload("failed")
        self.problem = problem
        self._metrics.set_policy_problem(failed=True)

    def _mend(self) -> None:
        if self.problem is not None:
            _log.info("policy.reloaded after: %s", _one_line(self.problem))
        self.problem = None
        self._metrics.set_policy_problem(failed=False)


def _one_line(problem: str) -> str:
    return "; ".join(problem.splitlines())


def _conflict(message: str) -> RequestError:
    return RequestError(message, status=409, code="conflict")

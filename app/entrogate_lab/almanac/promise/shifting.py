"""A calibrated policy in force while the world changes: does its fuse blow, and only then?

One gateway enforces the policy with an audit: first on tasks of the world that it was calibrated
on, then on tasks of one in which a share of what the model knows has changed
(`world.shifted`), so that it is as sure as before and wrong. What a run leaves in its folder:

    FOLDER/policy.yaml         the policy with the share of audits that was asked for
    FOLDER/trajectories.db     the gateway's store, fuses included
    FOLDER/shifting.json       the figures
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import yaml

from entrogate.calibrate.rules import with_fields
from entrogate.gate.policy import load_policy, parse_policy
from entrogate.gate.schema import Audit, Policy
from entrogate.risk.ltt import interval
from entrogate.risk.sequence import watch
from entrogate.settings import StoreSettings
from entrogate.store.read.fuses import Audited, Audits
from entrogate.store.store import Store
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.promise.collecting import PromiseError, Say
from entrogate_lab.almanac.serving import STORE, serving

FIGURES = "shifting.json"
ALL_TOOLS = "(all)"
_NAME = "almanac"
_JUDGED_SECONDS = 60.0  # until the last audits of a world have their shadows
_SETTINGS = {
    "ENTROGATE_GATE__FUSE_INTERVAL_SECONDS": "1",
    "ENTROGATE_SHADOW__CONCURRENCY": "8",
    "ENTROGATE_SHADOW__BUSY_TURNS": "64",
}
_LEFT = 0.05  # of the intervals' confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``tasks`` of ``seed`` in the world as it was, then as many of the next seed in the other."""

    model: Path
    world_seed: int
    policy: str
    share: float
    shift: float
    tasks: int
    seed: int
    concurrency: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWatch:
    """The judged audits of one tool; ``shifted`` counts those in the changed world."""

    tool: str
    audits: int
    losses: int
    shifted: int
    shifted_losses: int
    blown_after: int | None  # audits in all, the one that blew it included; None: it did not

    @property
    def delay(self) -> int | None:
        """Audits in the changed world until the fuse blew; negative: before the change."""
        return None if self.blown_after is None else self.blown_after - (self.audits - self.shifted)

    def as_json(self) -> dict[str, Any]:
        """The figures, with intervals of the two loss rates."""
        before = (self.losses - self.shifted_losses, self.audits - self.shifted)
        return asdict(self) | {
            "delay": self.delay,
            "before_ci": _share(*before),
            "shifted_ci": _share(self.shifted_losses, self.shifted),
        }


def audited_policy(name: str, share: float) -> Policy:
    """The policy with this share of audits. Raises PromiseError where it has no audit."""
    policy = load_policy(name)
    if policy.audit is None:
        raise PromiseError(f"the policy {policy.name} has no audit: calibrate writes one")
    values = policy.audit.model_dump() | {"share": share}
    return with_fields(policy, audit=Audit.model_validate(values))


def run(plan: Plan, folder: Path, *, say: Say) -> dict[str, Any]:
    """Do it on a vLLM and a gateway of its own; the figures."""
    policy = audited_policy(plan.policy, plan.share)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "policy.yaml"
    write_policy(path, policy)
    worlds: list[dict[str, Any]] = []
    with serving(
        plan.model,
        name=_NAME,
        policy=str(path),
        folder=folder,
        waiting=lambda _, __: None,
        settings=_SETTINGS,
    ) as url:
        for number, shift in enumerate((0.0, plan.shift)):
            say(f"{plan.tasks} tasks, {shift:.0%} of what the model knows changed")
            figures = _enforce(plan, url, plan.seed + number, shift)
            fuses = _judged(url)
            worlds.append({"shift": shift, **figures, "fuses": fuses})
    audits = asyncio.run(_audits(f"sqlite:///{(folder / STORE).resolve()}", policy.version))
    began = worlds[1]["began"]
    assert policy.audit is not None
    found = {
        "share": plan.share,
        "max_loss": policy.audit.max_loss,
        "delta": policy.audit.delta,
        "worlds": worlds,
        "tools": [each.as_json() for each in watched(policy.audit, audits, began)],
    }
    (folder / FIGURES).write_text(json.dumps(found, indent=1) + "\n")
    return found


def watched(audit: Audit, audits: Sequence[Audited], began: float) -> list[ToolWatch]:
    """What the gateway's rule says of each tool after each of its judged audits, in their order.

    ``began`` is when the world changed, in seconds since the epoch.
    """
    judged = [each for each in audits if each.lost is not None]
    if audit.pooled:
        judged = [replace(each, tool=ALL_TOOLS) for each in judged]
    found: list[ToolWatch] = []
    for tool in sorted({each.tool for each in judged}):
        own = [each for each in judged if each.tool == tool]
        losses = [each.lost is True for each in own]
        late = [each.lost is True for each in own if each.created_at >= began]
        blown = next(
            (
                n
                for n in range(1, len(losses) + 1)
                if watch(losses[:n], audit.delta).lower > audit.max_loss
            ),
            None,
        )
        found.append(
            ToolWatch(
                tool=tool,
                audits=len(own),
                losses=sum(losses),
                shifted=len(late),
                shifted_losses=sum(late),
                blown_after=blown,
            )
        )
    return found


def _enforce(plan: Plan, url: str, seed: int, shift: float) -> dict[str, Any]:
    began = time.time()
    result = asyncio.run(
        evaluate(
            f"{url}/v1",
            model=_NAME,
            tasks=plan.tasks,
            seed=seed,
            modes=("enforce",),
            concurrency=plan.concurrency,
            world_seed=plan.world_seed,
            feedback=True,
            shift=shift,
        )
    )
    summary = result["modes"]["enforce"]
    return {"began": began} | {
        name: summary[name] for name in ("tasks", "accuracy", "accuracy_ci", "calls_per_task")
    }


def _judged(url: str) -> list[dict[str, Any]]:
    """The fuses, once no audit waits any longer."""
    until = time.monotonic() + _JUDGED_SECONDS
    while True:
        answer = httpx.get(f"{url}/admin/fuses", timeout=30.0, trust_env=False).raise_for_status()
        fuses = cast("list[dict[str, Any]]", answer.json()["data"])
        if not any(fuse["waiting"] for fuse in fuses) or time.monotonic() > until:
            return fuses
        time.sleep(1.0)


async def _audits(url: str, version: str) -> Sequence[Audited]:
    store = Store.open(StoreSettings(url=url), read_only=True)
    try:
        found: Audits = await store.fuses.audits(version)
    finally:
        await store.aclose()
    return found.audited


def write_policy(path: Path, policy: Policy) -> None:
    """Write a policy so that what is read again is the same."""
    content = policy.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if parse_policy(text, str(path)).version != policy.version:
        raise PromiseError(f"the policy {policy.name} does not survive being written")
    path.write_text(text)


def _share(losses: int, n: int) -> list[float] | None:
    return list(interval(losses, n, _LEFT)) if n else None

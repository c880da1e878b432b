"""`almanac offpolicy`: are policies that never ran estimated as they turn out when they run?

The bundled model is served in mode explore and works on tasks; `entrogate policy evaluate` then
says what other policies would have done. Each of them is enforced on tasks of its own, with other
seeds, and the two are compared. What a step made lies in its folder, so a step that is there is not
done again:

    OUT/explore/{trajectories.db,evaluation.json}
    OUT/NAME/{policy.yaml,trajectories.db,evaluation.json}
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from entrogate.calibrate.by_weights import METRICS, calls_made
from entrogate.calibrate.evaluate import evaluate as evaluate_log
from entrogate.calibrate.evaluated import Options
from entrogate.errors import EntrogateError
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Policy
from entrogate.risk.offpolicy import Estimate, mean_estimate
from entrogate.store.options import opened
from entrogate.store.read.logged import LoggedTrajectory
from entrogate_lab.almanac.demo import BUNDLED_MODEL
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.serving import STORE, serving

EXPLORE = "explore"
_NAME = "almanac"
_TOOLS = "tools: {lookup: , calculator: , search: , read: }"
# What explores, and four policies that never ran beside it. Repeats are let through like all calls:
# exploring a replay never suppresses, so other thresholds could not be evaluated on it.
POLICIES = {
    EXPLORE: "defaults: {threshold: 1.5}\nexplore: {epsilon: 0.35}",
    "cautious": "defaults: {threshold: 0.8}",
    "eager": "defaults: {threshold: 2.5}",
    "mean": "signal: {statistic: entropy_mean}\ndefaults: {threshold: 0.45}",
    "budget": "defaults: {threshold: 1.5, max_calls: 1}",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many tasks explore, and how many each policy is run on."""

    explored: int = 600
    enforced: int = 300
    seed: int = 0
    concurrency: int = 8
    options: tuple[str, ...] = ()  # of `entrogate serve`


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one policy: estimated, and measured where it ran."""

    policy: str
    metric: str
    estimated: Estimate
    ran: Estimate

    @property
    def brackets(self) -> bool:
        """Does the interval of the estimate hold what was measured?"""
        return self.estimated.lower <= self.ran.value <= self.estimated.upper

    @property
    def agrees(self) -> bool:
        """Does the 95 % interval of the difference hold 0? Both have errors."""
        error = math.hypot(self.estimated.error, self.ran.error)
        return abs(self.estimated.value - self.ran.value) <= NormalDist().inv_cdf(0.975) * error


def run(out: Path, plan: Plan, say: Say, only: Sequence[str] = ()) -> None:
    """Do the steps that are not done yet, or those of them that ``only`` names."""
    for number, name in enumerate(POLICIES):
        folder = out / name
        if (folder / "evaluation.json").is_file() or (only and name not in only):
            continue
        mode = EXPLORE if name == EXPLORE else "enforce"
        tasks = plan.explored if name == EXPLORE else plan.enforced
        say(f"{name}: {tasks} tasks in mode {mode}")
        folder.mkdir(parents=True, exist_ok=True)
        policy = write_policy(folder, name)
        options = ("--mode", mode, *plan.options)
        with serving(
            BUNDLED_MODEL,
            name=_NAME,
            policy=str(policy),
            folder=folder,
            waiting=lambda _, __: None,
            options=options,
        ) as url:
            found = asyncio.run(
                evaluate(
                    f"{url}/v1",
                    model=_NAME,
                    tasks=tasks,
                    seed=plan.seed + number,
                    modes=[mode],
                    concurrency=plan.concurrency,
                    feedback=True,
                )
            )
        (folder / "evaluation.json").write_text(json.dumps(found["modes"], indent=2))


def write_policy(folder: Path, name: str) -> Path:
    """The file of a policy of `POLICIES`."""
    path = folder / "policy.yaml"
    path.write_text(f"schema_version: 1\nname: {name}\n{_TOOLS}\n{POLICIES[name]}\n")
    return path


def compare(out: Path) -> list[Row]:
    """Every policy that has run, estimated from what explored. EntrogateError without a log."""
    store = out / EXPLORE / STORE
    if not store.is_file():
        raise EntrogateError(f"{store} is not there: explore first")
    explored = _read(store)
    logging = load_policy(str(out / EXPLORE / "policy.yaml"))
    rows: list[Row] = []
    for name in POLICIES:
        folder = out / name
        if name == EXPLORE or not (folder / "evaluation.json").is_file():
            continue
        policy = load_policy(str(folder / "policy.yaml"))
        estimated = _estimates(explored, policy, logging)
        ran = _measured(_read(folder / STORE))
        rows += [
            Row(policy=name, metric=metric, estimated=estimated[metric], ran=ran[metric])
            for metric in METRICS
        ]
    return rows


def _read(store: Path) -> list[LoggedTrajectory]:
    with opened(f"sqlite:///{store.resolve()}") as opened_store:
        return list(opened_store.iter_logged())


def _estimates(
    explored: Iterable[LoggedTrajectory], policy: Policy, logging: Policy
) -> dict[str, Estimate]:
    report = evaluate_log(explored, policy, Options(), lambda _: logging)
    found = report.models[0].explored
    if found is None or found.refused is not None:
        raise EntrogateError(f"{policy.name}: {found.refused if found else 'nothing explored'}")
    return {metric: own.doubly_robust for metric, own in found.estimates.items()}


def _measured(ran: Sequence[LoggedTrajectory]) -> dict[str, Estimate]:
    known = [each for each in ran if each.scores]
    columns = {
        "calls": [float(sum(map(calls_made, each.turns))) for each in known],
        "tokens": [float(sum(turn.n_tokens for turn in each.turns)) for each in known],
        "seconds": [sum(turn.duration_seconds for turn in each.turns) for each in known],
        "outcome": [each.scores[-1] for each in known],
    }
    return {
        metric: mean_estimate(
            np.array(column),
            np.arange(len(known), dtype=np.int64),
            bounds=(0.0, 1.0) if metric == "outcome" else (0.0, math.inf),
        )
        for metric, column in columns.items()
    }


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For other programs."""
    return [
        {
            "policy": row.policy,
            "metric": row.metric,
            "estimated": [row.estimated.value, row.estimated.lower, row.estimated.upper],
            "effective": row.estimated.effective,
            "ran": [row.ran.value, row.ran.lower, row.ran.upper],
            "brackets": row.brackets,
            "agrees": row.agrees,
        }
        for row in rows
    ]

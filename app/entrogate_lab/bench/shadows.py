"""What shadows cost clients, and whether they say what enforced runs would have shown.

The price: the same first requests of agents, in paired rounds, through two gateways on one vLLM
that differ in the share of trajectories with shadows. The accuracy: the bundled model's tasks once
observed, every call with a shadow, and once really enforced. Under the policy, the first call that
it suppresses ends an observed trajectory with that call's shadow; of each task, that answer and the
one of the enforced run are right or wrong, and the difference of the two shares is reported.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrogate.gate.decide import decide_turn
from entrogate.gate.features import from_json
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Policy
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.read.rows import Trajectory
from entrogate.types import Action, Mode
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.scoring import is_correct
from entrogate_lab.almanac.tasks import held_out_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS, tool_schema
from entrogate_lab.almanac.world import make_world
from entrogate_lab.bench.load import Run, run_load
from entrogate_lab.bench.processes import child, free_port

_TOKENS = 192
_RESAMPLES = 10_000
_DRAIN_SECONDS = 300.0
_WAITING = re.compile(r"^entrogate_shadows_waiting (\S+)$", re.MULTILINE)
_OUTCOME = re.compile(r'^entrogate_shadows_total\{outcome="(\w+)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``upstream`` is a running vLLM with the bundled model under the name ``model``."""

    upstream: str
    model: str
    policy: str
    share: float
    tasks: int
    rounds: int
    requests: int  # of one gateway in one round
    concurrency: int
    seed: int
    folder: Path


def run(plan: Plan) -> dict[str, Any]:
    """What `entrogate bench shadows --json` writes."""
    result: dict[str, Any] = {
        "share": plan.share,
        "concurrency": plan.concurrency,
        "seed": plan.seed,
        "policy": plan.policy,
    }
    if plan.rounds:
        result["price"] = asyncio.run(_price(plan))
    if plan.tasks:
        result["accuracy"] = _accuracy(plan)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines: list[str] = []
    if (price := result.get("price")) is not None:
        lower, upper = price["interval"]
        lines.append(
            f"throughput with shadows for {result['share']:.0%} of the trajectories, to without:"
            f" {price['ratio']:.3f} (95 %: {lower:.3f} to {upper:.3f};"
            f" {price['rounds']} rounds of {price['requests']} requests,"
            f" {result['concurrency']} at a time; {price['shadows']})"
        )
    if (accuracy := result.get("accuracy")) is not None:
        lower, upper = accuracy["interval"]
        lines.append(
            f"right under policy {result['policy']}: {accuracy['shadows']:.1%} by shadows,"
            f" {accuracy['enforced']:.1%} enforced; difference {100 * accuracy['difference']:+.1f}"
            f" points (95 %: {100 * lower:+.1f} to {100 * upper:+.1f}; {accuracy['tasks']} tasks,"
            f" {accuracy['left_out']} left out, {accuracy['stopped']} stopped at a shadow;"
            f" observed: {accuracy['observed']:.1%})"
        )
    return "\n".join(lines)


async def _price(plan: Plan) -> dict[str, Any]:
    """Paired rounds, both gateways in random order within each; shadows end before the next."""
    rng = random.Random(plan.seed)
    bodies = _bodies(plan)
    runs: dict[str, list[Run]] = {"without": [], "with": []}
    shares = {"without": 0.0, "with": plan.share}
    with (
        _gateway(plan, "without", shadow__share="0") as without,
        _gateway(plan, "with", shadow__share=str(plan.share)) as with_shadows,
    ):
        urls = {"without": without, "with": with_shadows}
        for number in range(-1, plan.rounds):  # the first warms up
            _say(f"round {number + 1} of {plan.rounds}")
            for name in rng.sample(sorted(shares), len(shares)):
                found = await run_load(
                    urls[name], bodies, concurrency=plan.concurrency, stream=True
                )
                await asyncio.to_thread(_drain, urls[name])
                if number >= 0:
                    runs[name].append(found)
        counted = _shadows(with_shadows)
    pairs = zip(runs["with"], runs["without"], strict=True)
    logs = np.log([without.wall_seconds / with_.wall_seconds for with_, without in pairs])
    lower, upper = map(math.exp, _bootstrap(logs, plan.seed))
    return {
        "ratio": round(float(np.exp(logs.mean())), 4),
        "interval": [round(lower, 4), round(upper, 4)],
        "rounds": plan.rounds,
        "requests": plan.requests,
        "requests_per_second": {
            name: round(statistics.median(len(bodies) / r.wall_seconds for r in found), 1)
            for name, found in runs.items()
        },
        "shadows": counted,
    }


def _accuracy(plan: Plan) -> dict[str, Any]:
    policy = load_policy(plan.policy)
    with _gateway(plan, "observe", shadow__share="1", shadow__queue_limit="100000") as url:
        observed = _records(plan, url, "observe")
        _drain(url)
    with _gateway(plan, "enforce", gate__policy=plan.policy) as url:
        enforced = _records(plan, url, "enforce")
    store = Store.open(StoreSettings(url=_store_url(plan, "observe")), read_only=True)
    try:
        answers = asyncio.run(_answers(store, policy, observed))
    finally:
        asyncio.run(store.aclose())
    rows = [
        (_is_right(record, answer), float(real["correct"]), float(record["correct"]))
        for record, real, answer in zip(observed, enforced, answers, strict=True)
        if answer is not MISSING
    ]
    by_shadow, really, before = np.array(rows).T
    lower, upper = _bootstrap(by_shadow - really, plan.seed)
    return {
        "tasks": len(rows),
        "left_out": len(observed) - len(rows),
        "stopped": sum(answer is not None and answer is not MISSING for answer in answers),
        "observed": round(float(before.mean()), 4),
        "shadows": round(float(by_shadow.mean()), 4),
        "enforced": round(float(really.mean()), 4),
        "difference": round(float((by_shadow - really).mean()), 4),
        "interval": [round(lower, 4), round(upper, 4)],
    }


MISSING = "\0"
"""Stands for the answer of a trajectory that stops at a call without a shadow."""


async def _answers(
    store: Store, policy: Policy, records: Sequence[dict[str, Any]]
) -> list[str | None]:
    return [
        answer_under(policy, await store.get_trajectory(record["trajectory_id"]))
        for record in records
    ]


def answer_under(policy: Policy, trajectory: Trajectory) -> str | None:
    """The shadow that ends an observed trajectory under ``policy``; None where it goes on to its
    own end, `MISSING` where that shadow was not decoded."""
    for turn in trajectory.turns:
        if not turn.calls:
            continue
        features = [from_json(json.dumps(call.features)) for call in turn.calls]
        decided = decide_turn(policy, Mode.ENFORCE, features)
        if decided[0].action is Action.SUPPRESS:
            return MISSING if turn.shadow is None else turn.shadow.content
    return None


def _is_right(record: dict[str, Any], answer: str | None) -> float:
    if answer is None:
        return float(record["correct"])
    return float(is_correct(answer.strip(), record["gold"]))


def _records(plan: Plan, url: str, mode: str) -> list[dict[str, Any]]:
    result = asyncio.run(
        evaluate(
            f"{url}/v1",
            model=plan.model,
            tasks=plan.tasks,
            seed=plan.seed,
            modes=(mode,),
            concurrency=plan.concurrency,
        )
    )
    return result["records"][mode]


def _bodies(plan: Plan) -> list[bytes]:
    world = make_world(0)
    found: list[bytes] = []
    for index in range(plan.requests):
        task = held_out_task(world, plan.seed, index)
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": task.question}],
            "tools": [tool_schema(name) for name in DOMAIN_TOOLS[task.domain]],
            "temperature": 0.8,
            "seed": index,
            "max_tokens": _TOKENS,
            "stream": True,
        }
        found.append(json.dumps(body).encode())
    return found


@contextmanager
def _gateway(plan: Plan, name: str, **settings: str) -> Generator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    tree = {
        "upstream__url": plan.upstream,
        "store__url": _store_url(plan, name),
        "gate__policy": "observe",
        "gate__allow_mode_header": "true",
        "shadow__busy_turns": "1024",
        **settings,
    }
    with child(
        ("entrogate", "serve", "--port", str(port)),
        url=url,
        ready="/ready",
        log=plan.folder / f"{name}.log",
        environment={f"ENTROGATE_{key.upper()}": value for key, value in tree.items()},
    ):
        yield url


def _store_url(plan: Plan, name: str) -> str:
    return f"sqlite:///{plan.folder / name}.db"


def _drain(url: str) -> None:
    """Wait until no shadow waits and their number stands still."""
    until = time.monotonic() + _DRAIN_SECONDS
    before: dict[str, int] = {}
    while time.monotonic() < until:
        time.sleep(0.5)
        counted = _shadows(url)
        waits = _WAITING.search(_metrics(url))
        if waits is not None and float(waits.group(1)) == 0 and counted == before:
            return
        before = counted


def _shadows(url: str) -> dict[str, int]:
    """How many shadows came to what."""
    return {name: int(float(n)) for name, n in _OUTCOME.findall(_metrics(url)) if float(n)}


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # nosec B310  (ours)
        return answer.read().decode()


def _bootstrap(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean."""
    rng = np.random.default_rng(seed)
    shape = (_RESAMPLES, len(values))
    chosen = np.asarray(rng.integers(len(values), size=shape), dtype=np.int64)
    means: NDArray[np.float64] = values[chosen].mean(1)
    lower, upper = np.percentile(means, [2.5, 97.5])
    return float(lower), float(upper)


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")

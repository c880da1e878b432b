"""`almanac loop`: the whole loop on the bundled model, in one command, measured round by round."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrogate.train import loop
from entrogate_lab.almanac.demo import BUNDLED_MODEL
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.serving import STORE, serving

TRAINING = (
    *("--reward", "sparse", "--lora-rank", "32", "--learning-rate", "2e-3"),
    *("--batch-tokens", "8192", "--warmup-steps", "3"),
    *("--stop-log-ratio", "3", "--stop-effective-share", "0.02"),
)
_NAME = "almanac"
_CONCURRENCY = 32
_HELD_OUT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Rollouts of a round are ``tasks`` × ``repeats``; ``eval_tasks`` are held out."""

    rounds: int
    tasks: int
    repeats: int
    eval_tasks: int
    training: tuple[str, ...] = TRAINING


def run(plan: Plan, out: Path, *, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Figures of the base and after each round; what is in ``out`` already is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    say("starting vLLM and the gateway")
    figures: list[dict[str, Any]] = []
    with serving(
        BUNDLED_MODEL,
        name=_NAME,
        policy="balanced",
        folder=out,
        waiting=_quiet,
        options=("--lora", "--max-lora-rank", "32"),
        fresh=False,
    ) as gateway:
        for number in range(plan.rounds + 1):
            if number:
                loop.run(_rounds(plan, out, gateway, number), say=say)
            path = out / f"evaluation-{number}.json"
            if not path.is_file():
                path.write_text(json.dumps(_evaluated(plan, gateway)) + "\n")
            figures.append(json.loads(path.read_text()))
            now = figures[-1]
            say(
                f"round {number}: {now['calls_per_task']:.2f} calls per task, "
                f"{now['accuracy']:.1%} right"
            )
    return figures


def _rounds(plan: Plan, out: Path, gateway: str, rounds: int) -> loop.Plan:
    collect = (
        f"{shlex.quote(sys.executable)} -m entrogate almanac eval --base-url $ENTROGATE_GATEWAY/v1 "
        f"--split train --tasks {plan.tasks} --repeats {plan.repeats} --seed $ENTROGATE_ROUND "
        f"--concurrency {_CONCURRENCY} --feedback > /dev/null"
    )
    return loop.Plan(
        folder=out,
        model=str(BUNDLED_MODEL),
        store=f"sqlite:///{(out / STORE).resolve()}",
        gateway=gateway,
        rounds=rounds,
        collect=collect,
        at_least=2 * plan.repeats,
        settle_seconds=1.0,
        share=1.0,
        training=plan.training,
    )


def _evaluated(plan: Plan, gateway: str) -> dict[str, Any]:
    result = asyncio.run(
        evaluate(
            f"{gateway}/v1",
            model=_NAME,
            tasks=plan.eval_tasks,
            seed=_HELD_OUT_SEED,
            modes=("observe",),
            concurrency=_CONCURRENCY,
        )
    )
    return result["modes"]["observe"]


def _quiet(seconds: float, line: str) -> None:
    """Starting takes half a minute and has a line of its own already."""

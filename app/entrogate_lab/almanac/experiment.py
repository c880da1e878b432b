"""`almanac experiment`: several rewards, the same budget, on the real server; goes on after a stop.

For each seed the bundled model is served and evaluated with and without the gate, and rolls out
training tasks. Each method then trains on rollouts, is served, evaluated and rolls out in its turn,
for some rounds; in the first all methods share the rollouts of the base. What a step made lies in
its folder, so a step that is there is not done again:

    OUT/plan.json
    OUT/seed-0/base/{evaluation,rollouts}.json, dataset/
    OUT/seed-0/sparse/round-1/model/, evaluation.json, …
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from entrogate.errors import EntrogateError
from entrogate_lab.almanac.demo import BUNDLED_MODEL
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.almanac.serving import STORE, serving

# All weights and not a LoRA: vLLM decodes ten times slower with one on a CPU.
TRAINING = (
    *("--lora-rank", "0", "--learning-rate", "5e-4"),
    *("--batch-tokens", "8192", "--warmup-steps", "3"),
    *("--stop-log-ratio", "3", "--stop-effective-share", "0.02"),
)
# By name, the options of `entrogate train` that make it; the last two are not the paper's.
_NATS = ("--min-reduction", "0.1")
METHODS = {
    "outcome": ("--reward", "outcome"),
    "otc": ("--reward", "otc"),
    "sparse": ("--reward", "sparse"),
    "dense": ("--reward", "dense"),
    "sparse-0.1": ("--reward", "sparse", *_NATS),
    "dense-0.1": ("--reward", "dense", *_NATS),
}
BASE = "base"
EVALUATION, ROLLOUTS, DATASET = "evaluation.json", "rollouts.json", "dataset"
DONE = "whole"  # in a dataset: the export has ended
_NAME = "almanac"
_SEED_STRIDE = 1000

Say = Callable[[str], None]


class ExperimentError(EntrogateError):
    """A step of the experiment failed; the message is one line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run. ``training`` are further options of `entrogate train`, for all methods alike."""

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = tuple(METHODS)
    rounds: int = 2
    tasks: int = 96
    repeats: int = 8
    eval_tasks: int = 300
    policy: str = "balanced"
    training: tuple[str, ...] = TRAINING


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One set of weights: where they lie, what comes of them goes to ``folder``."""

    seed: int
    method: str
    round: int
    folder: Path
    model: Path


def run(plan: Plan, out: Path, *, say: Say) -> None:
    """Do all that is not done yet. Raises ExperimentError where ``out`` holds another plan."""
    _claim(plan, out)
    for seed in plan.seeds:
        base = Step(
            seed=seed,
            method=BASE,
            round=0,
            folder=out / f"seed-{seed}" / BASE,
            model=BUNDLED_MODEL,
        )
        _measure(plan, base, rolls_out=True, say=say)
        for method in plan.methods:
            before = base
            for number in range(1, plan.rounds + 1):
                folder = out / f"seed-{seed}" / method / f"round-{number}"
                step = Step(
                    seed=seed, method=method, round=number, folder=folder, model=folder / "model"
                )
                _train(plan, step, before, say=say)
                _measure(plan, step, rolls_out=number < plan.rounds, say=say)
                before = step


def _claim(plan: Plan, out: Path) -> None:
    path = out / "plan.json"
    wanted = json.loads(json.dumps(asdict(plan)))
    if path.is_file():
        found = json.loads(path.read_text())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if set(differing) - {"seeds", "methods", "rounds"}:  # there may be more of them
            raise ExperimentError(f"{out} holds another experiment ({', '.join(differing)} differ)")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2) + "\n")


def _train(plan: Plan, step: Step, before: Step, *, say: Say) -> None:
    """Weights of ``step`` from those of ``before`` and its rollouts."""
    finished = step.folder / "trained"
    if finished.exists():
        return
    say(f"seed {step.seed}, {step.method}, round {step.round}: training")
    command = ["train", str(before.folder / DATASET), "--model", str(before.model)]
    command += ["--out", str(step.model), "--seed", str(step.seed)]
    options = (*METHODS[step.method], *plan.training)
    _entrogate([*command, *options], log=step.folder / "train.log")
    finished.touch()


def _measure(plan: Plan, step: Step, *, rolls_out: bool, say: Say) -> None:
    """Serve the weights: evaluate them in both modes and, if wanted, roll out training tasks."""
    folder = step.folder
    wanted = (EVALUATION, ROLLOUTS) if rolls_out else (EVALUATION,)
    if not all((folder / name).is_file() for name in wanted):
        _serve(plan, step, rolls_out=rolls_out, say=say)
    if (folder / DATASET / DONE).is_file():
        return
    shutil.rmtree(folder / DATASET, ignore_errors=True)
    store = f"sqlite:///{(folder / STORE).resolve()}"
    export = ["export", "--store", store, "--to", str(folder / DATASET)]
    export += ["--model-folder", str(step.model)]
    _entrogate([*export, "--settle", "1", "--patience", "1"], log=folder / "export.log")
    (folder / DATASET / DONE).touch()
    for database in folder.glob(f"{STORE}*"):
        database.unlink()


def _serve(plan: Plan, step: Step, *, rolls_out: bool, say: Say) -> None:
    folder = step.folder
    label = f"seed {step.seed}, {step.method}, round {step.round}"
    say(f"{label}: starting vLLM")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / DATASET, ignore_errors=True)
    with serving(
        step.model, name=_NAME, policy=plan.policy, folder=folder, waiting=_quiet
    ) as gateway:
        began = time.monotonic()
        evaluation = _run_tasks(
            gateway, tasks=plan.eval_tasks, seed=step.seed, modes=("observe", "enforce")
        )
        _write(folder / EVALUATION, evaluation)
        if rolls_out:
            rollouts = _run_tasks(
                gateway,
                tasks=plan.tasks,
                # Every round draws tasks of its own, the same ones for each method.
                seed=_SEED_STRIDE * (step.seed + 1) + step.round,
                modes=("observe",),
                split="train",
                repeats=plan.repeats,
                feedback=True,
            )
            _write(folder / ROLLOUTS, rollouts)
        say(f"{label}: {_figures(evaluation)}, {time.monotonic() - began:.0f} s")


def _write(path: Path, result: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result) + "\n")
    temporary.replace(path)


def _run_tasks(gateway: str, **wanted: Any) -> dict[str, Any]:
    return asyncio.run(evaluate(f"{gateway}/v1", model=_NAME, concurrency=32, **wanted))


def _figures(evaluation: dict[str, Any]) -> str:
    return ", ".join(
        f"{mode} {total['accuracy']:.1%} with {total['calls_per_task']:.2f} calls"
        for mode, total in evaluation["modes"].items()
    )


def _entrogate(arguments: Sequence[str], *, log: Path) -> None:
    """Run a command of ours as a process of its own: its memory goes with it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "entrogate", *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ExperimentError(f"entrogate {arguments[0]} failed ({log}): {''.join(last)}")


def _quiet(seconds: float, line: str) -> None:
    """Starting takes half a minute and has a line of its own already."""

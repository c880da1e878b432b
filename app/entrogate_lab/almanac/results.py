"""The figures of an experiment: `collect` makes what `docs/results.json` holds.

Intervals are at 95 %, by a bootstrap over seeds and, within a seed, over tasks (the same tasks for
every method of a seed, so that differences are paired).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrogate_lab.almanac.evidence import evidence, mean_entropy, read_calls
from entrogate_lab.almanac.experiment import BASE, EVALUATION, ExperimentError

BASELINES = (BASE, "outcome", "otc")
MODES = {"observe": "", "enforce": "+gate"}
FIGURES = ("accuracy", "f1", "calls_per_task")
_DRAWS = 2000
_PAPER = {"sparse_call_reduction": 0.7207, "dense_gain": 0.2227}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Tasks of one seed under one set of weights and one mode; arrays of length N tasks."""

    accuracy: np.ndarray
    f1: np.ndarray
    calls_per_task: np.ndarray
    oracle_calls: np.ndarray

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> Cell:
        """From the lines of an evaluation, one a task."""

        def column(value: Callable[[dict[str, Any]], float]) -> np.ndarray:
            return np.array([value(record) for record in records], dtype=np.float64)

        return cls(
            accuracy=column(lambda r: r["correct"]),
            f1=column(lambda r: r["f1"]),
            calls_per_task=column(lambda r: len(r["calls"])),
            oracle_calls=column(lambda r: r["oracle_calls"]),
        )

    def figure(self, name: str) -> np.ndarray:
        """The array of a field, by its name."""
        return getattr(self, name)


Cells = dict[str, dict[int, Cell]]
"""By method (with ``+gate`` where it was enforced), then by seed."""


Rounds = dict[tuple[int, str], dict[int, Cell]]
"""By round (0: the base) and method, then by seed."""


def collect(out: Path) -> dict[str, Any]:
    """The results of the finished seeds under ``out``; ExperimentError when there is none."""
    rounds = _rounds(out) if (out / "plan.json").is_file() else {}
    if not rounds:
        raise ExperimentError(f"{out} holds no finished seed of an experiment")
    found = summarise(rounds)
    for row in found["by_round"]:
        folders = (_folder(out, seed, row["method"], row["round"]) for seed in found["seeds"])
        row["entropy"] = round(float(np.mean([mean_entropy(folder) for folder in folders])), 4)
    found["entropy_change"] = evidence(read_calls(out, found["seeds"]))
    return found


def summarise(rounds: Rounds) -> dict[str, Any]:
    """Figures and headlines of the last round, and the figures of every round."""
    last = max(number for number, _ in rounds)
    final = {method: cells for (number, method), cells in rounds.items() if number in (0, last)}
    draws = _draws(final)
    return {
        "schema_version": 1,
        "seeds": sorted(final[BASE]),
        "tasks_per_seed": len(next(iter(final[BASE].values())).accuracy),
        "rounds": last,
        "methods": {method: _method(cells, draws) for method, cells in sorted(final.items())},
        "headlines": _headlines(final, draws),
        "against_outcome": _against(final, "outcome", draws),
        "by_round": _by_round(rounds),
    }


def _folder(out: Path, seed: int, method: str, number: int) -> Path:
    folder = out / f"seed-{seed}" / method
    return folder if method == BASE else folder / f"round-{number}"


def _rounds(out: Path) -> Rounds:
    """By round and method, the seeds for which every method has finished every round."""
    plan = json.loads((out / "plan.json").read_text())
    found: Rounds = {}
    for seed in plan["seeds"]:
        folders = {(0, BASE): _folder(out, seed, BASE, 0)}
        for method in plan["methods"]:
            for number in range(1, plan["rounds"] + 1):
                folders[number, method] = _folder(out, seed, method, number)
        if not all((folder / EVALUATION).is_file() for folder in folders.values()):
            continue
        for (number, method), folder in folders.items():
            records = json.loads((folder / EVALUATION).read_text())["records"]
            for mode, suffix in MODES.items():
                cells = found.setdefault((number, method + suffix), {})
                cells[seed] = Cell.of(records[mode])
    return found


Draw = list[tuple[int, np.ndarray]]
"""A resample: seeds, each with the indices of its tasks."""


def _draws(final: Cells) -> list[Draw]:
    rng = np.random.default_rng(0)
    cells = final[BASE]
    seeds = sorted(cells)
    count = len(next(iter(cells.values())).accuracy)
    return [
        [(int(seed), rng.integers(0, count, count)) for seed in rng.choice(seeds, len(seeds))]
        for _ in range(_DRAWS)
    ]


def _resampled(cells: dict[int, Cell], name: str, draw: Draw) -> float:
    return float(np.mean([cells[seed].figure(name)[tasks].mean() for seed, tasks in draw]))


def _point(cells: dict[int, Cell], name: str) -> float:
    return float(np.mean([cell.figure(name).mean() for cell in cells.values()]))


def _interval(values: Iterable[float]) -> list[float]:
    low, high = np.quantile(np.fromiter(values, dtype=np.float64), (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


def _method(cells: dict[int, Cell], draws: Sequence[Draw]) -> dict[str, Any]:
    without = np.concatenate([c.accuracy[c.calls_per_task == 0] for c in cells.values()])
    total = sum(len(c.accuracy) for c in cells.values())
    return {
        "seeds": [
            {"seed": seed, **{name: round(float(c.figure(name).mean()), 4) for name in FIGURES}}
            for seed, c in sorted(cells.items())
        ],
        **{name: round(_point(cells, name), 4) for name in FIGURES},
        "oracle_calls_per_task": round(_point(cells, "oracle_calls"), 4),
        "ci": {name: _interval(_resampled(cells, name, d) for d in draws) for name in FIGURES},
        "without_calls": {
            "share": round(len(without) / total, 4),
            "accuracy": round(float(without.mean()), 4) if len(without) else None,
        },
    }


def _headlines(final: Cells, draws: Sequence[Draw]) -> dict[str, Any]:
    """As the paper defines them: against the average of the baselines, all without the gate.

    ``…_gated``: the same where the gate is enforced over what was trained (the baselines stay
    without it). ``call_reduction_at_oracle``: what the fewest calls that suffice would be.
    """
    if not {"sparse", "dense", *BASELINES} <= set(final):
        return {}

    def headlines(value: Callable[[str, str], float], gate: str) -> tuple[float, float]:
        calls, f1 = (
            np.mean([value(method, name) for method in BASELINES])
            for name in ("calls_per_task", "f1")
        )
        reduction = 1 - value(f"sparse{gate}", "calls_per_task") / calls
        return float(reduction), float(value(f"dense{gate}", "f1") / f1 - 1)

    def point(method: str, name: str) -> float:
        return _point(final[method], name)

    found: dict[str, Any] = {}
    for gate, suffix in (("", ""), ("+gate", "_gated")):
        points = headlines(point, gate)
        drawn = [
            headlines(lambda method, name, draw=draw: _resampled(final[method], name, draw), gate)
            for draw in draws
        ]
        for name, at, values in zip(_PAPER, points, zip(*drawn, strict=True), strict=True):
            found[f"{name}{suffix}"] = round(at, 4)
            found[f"{name}{suffix}_ci"] = _interval(values)
            found[f"{name}_paper"] = _PAPER[name]
    calls = np.mean([point(method, "calls_per_task") for method in BASELINES])
    found["call_reduction_at_oracle"] = round(1 - point(BASE, "oracle_calls") / float(calls), 4)
    return found


def _against(final: Cells, other: str, draws: Sequence[Draw]) -> dict[str, Any]:
    """Differences to the method ``other`` on the same tasks, with intervals; without the gate."""
    if other not in final:
        return {}
    found: dict[str, Any] = {}
    for method in sorted(name for name in final if name != other and "+" not in name):
        of: dict[str, Any] = {}
        for name in FIGURES:
            pair = final[method], final[other]
            of[name] = round(_point(pair[0], name) - _point(pair[1], name), 4)
            of[f"{name}_ci"] = _interval(
                _resampled(pair[0], name, draw) - _resampled(pair[1], name, draw) for draw in draws
            )
        found[method] = of
    return found


def _by_round(rounds: Rounds) -> list[dict[str, Any]]:
    """Without the gate: the figures of each method after each round."""
    return [
        {
            "round": number,
            "method": method,
            **{name: round(_point(cells, name), 4) for name in FIGURES},
        }
        for (number, method), cells in sorted(rounds.items())
        if "+" not in method
    ]

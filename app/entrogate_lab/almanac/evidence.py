# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Does a fall of the entropy tell good calls from bad ones? On the rollouts of the base model.

A call is good in two ways: it was *needed* (the world says so: the first to bring a fact that the
chain needs and the model does not know), or its task was *solved*. Intervals are at 95 %, by a
bootstrap over trajectories, whose calls are not independent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from entrogate.export.dataset import Dataset
from entrogate_lab.almanac.experiment import BASE, DATASET, EVALUATION, ROLLOUTS
from entrogate_lab.almanac.tasks import DOMAINS

_DRAWS = 500
_REDUCTIONS = (0.0, 0.05, 0.1, 0.2, 0.3)  # nats


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCall:
    """A call whose ΔH (nats) is known."""

    trajectory: str
    domain: str
    delta: float
    reduced: bool
    needed: bool
    solved: bool


@dataclass(slots=True)
class Calls:
    """The labelled calls, and why the others have no label."""

    labelled: list[LabelledCall]
    unlabelled: Counter[str]


def read_calls(out: Path, seeds: Iterable[int]) -> Calls:
    """Calls of the base's rollouts, joined with what the world says of them."""
    found = Calls([], Counter())
    for seed in seeds:
        folder = out / f"seed-{seed}" / BASE
        records = json.loads((folder / ROLLOUTS).read_text())["records"]["observe"]
        columns = ["trajectory_id", "branch_index", "calls"]
        rows = {
            row["trajectory_id"]: row["calls"]
            for row in _rows(folder / DATASET, columns)
            if row["branch_index"] == 0
        }
        for record in records:
            # What the last turn asked for when the turns ran out was exported, but not made.
            calls = rows.get(record["trajectory_id"], [])[: len(record["calls"])]
            if [call["name"] for call in calls] != [call["name"] for call in record["calls"]]:
                found.unlabelled["not exported whole"] += len(record["calls"])
                continue
            for call, judged in zip(calls, record["calls"], strict=True):
                if call["reduced"] is None:
                    found.unlabelled[call["null_reason"]] += 1
                    continue
                found.labelled.append(
                    LabelledCall(
                        trajectory=record["trajectory_id"],
                        domain=record["domain"],
                        delta=call["delta_h"],
                        reduced=call["reduced"],
                        needed=not judged["needless"],
                        solved=record["correct"],
                    )
                )
    return found


def evidence(calls: Calls) -> dict[str, Any]:
    """Tables, rank correlations and AUCs, in total and by domain."""
    by_domain = {"all": calls.labelled}
    by_domain |= {d: [c for c in calls.labelled if c.domain == d] for d in DOMAINS}
    return {
        "unlabelled": dict(calls.unlabelled),
        **{name: _figures(some) for name, some in by_domain.items() if some},
    }


def _figures(calls: Sequence[LabelledCall]) -> dict[str, Any]:
    delta = np.array([c.delta for c in calls])
    groups = np.unique([c.trajectory for c in calls], return_inverse=True)[1]
    found: dict[str, Any] = {"calls": len(calls)}
    for name in ("needed", "solved"):
        good = np.array([getattr(c, name) for c in calls])
        reduced = np.array([c.reduced for c in calls])
        found[name] = {
            "reduced_and_good": int((reduced & good).sum()),
            "reduced_and_bad": int((reduced & ~good).sum()),
            "not_reduced_and_good": int((~reduced & good).sum()),
            "not_reduced_and_bad": int((~reduced & ~good).sum()),
            **_separation(delta, good, groups),
        }
    needed = np.array([c.needed for c in calls])
    found["at_least"] = [
        {
            "nats": nats,
            "of_needed": _share(delta[needed] <= -nats if nats else delta[needed] < 0),
            "of_needless": _share(delta[~needed] <= -nats if nats else delta[~needed] < 0),
        }
        for nats in _REDUCTIONS
    ]
    return found


def _share(which: np.ndarray) -> float | None:
    return round(float(which.mean()), 3) if len(which) else None


def _separation(delta: np.ndarray, good: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """AUC of -ΔH for ``good``, and the rank correlation of the two, with intervals."""
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    rng = np.random.default_rng(0)
    draws: list[tuple[float, float]] = []
    for _ in range(_DRAWS):
        drawn = rng.integers(0, len(members), len(members))
        some = np.concatenate([members[i] for i in drawn])
        draws.append((_auc(delta[some], good[some]), _rank(delta[some], good[some])))
    low, high = np.nanquantile(np.array(draws), (0.025, 0.975), axis=0).round(3).tolist()
    return {
        "auc": round(_auc(delta, good), 3),
        "auc_ci": [low[0], high[0]],
        "rank_correlation": round(_rank(delta, good), 3),
        "rank_correlation_ci": [low[1], high[1]],
    }


def _auc(delta: np.ndarray, good: np.ndarray) -> float:
    """Chance that a good call lowered the entropy more than a bad one (ties count half)."""
    if good.all() or not good.any():
        return float("nan")
    u = stats.mannwhitneyu(-delta[good], -delta[~good]).statistic
    return float(u) / (int(good.sum()) * int((~good).sum()))


def _rank(delta: np.ndarray, good: np.ndarray) -> float:
    if good.all() or not good.any():
        return float("nan")
    found: Any = stats.spearmanr(-delta, good)
    return float(found.statistic)


def mean_entropy(folder: Path) -> float:
    """Mean entropy (nats) of the tokens sampled in the evaluation without the gate."""
    records = json.loads((folder / EVALUATION).read_text())["records"]["observe"]
    wanted = {record["trajectory_id"] for record in records}
    values = [
        np.asarray(row["entropy"])
        for row in _rows(folder / DATASET, ["trajectory_id", "entropy"])
        if row["trajectory_id"] in wanted
    ]
    return round(float(np.nanmean(np.concatenate(values))), 4)


def _rows(dataset: Path, columns: list[str]) -> Iterable[dict[str, Any]]:
    found = Dataset.reading(str(dataset))
    for part in found.parts():
        with found.fs.open(part, "rb") as source:
            yield from pq.ParquetFile(source).read(columns=columns).to_pylist()

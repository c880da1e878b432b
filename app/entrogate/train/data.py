# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""Exported rows to training sequences: rewards against their groups, credited to tokens.

Token arrays have length T and are parallel to ``input_ids``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from entrogate.errors import EntrogateError
from entrogate.export.dataset import Dataset
from entrogate.export.schema import SCHEMA_VERSION
from entrogate.label.credit import (
    Baseline,
    group_advantages,
    otc_rewards,
    turn_advantages,
    with_bonus,
)
from entrogate.label.rewards import RewardOptions, dense_rewards, sparse_reward

RewardName = Literal["outcome", "otc", "sparse", "dense"]

_COLUMNS = (
    "schema_version", "trajectory_id", "group_id", "branch_index", "model_id", "tokenizer_hash",
    "weight_version", "input_ids", "loss_mask", "old_logprobs", "temperature", "logprobs_mode",
    "segment_id", "calls", "outcome", "truncated", "complete",
)  # fmt: skip


class DataError(EntrogateError):
    """A dataset that cannot be trained on; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """Which reward, and how it becomes an advantage.

    ``dense``: ``paper`` compares r_k = outcome (1 + α I_k) with call k of the other trajectories;
    ``calibrated`` adds the advantage of the bonus α · outcome · I_k to the advantage of the
    outcome, and never lets it turn the sign. ``baseline`` None keeps the rewards as they are.
    """

    reward: RewardName = "dense"
    baseline: Baseline | None = "leave_one_out"
    options: RewardOptions = field(default_factory=RewardOptions)
    dense: Literal["paper", "calibrated"] = "calibrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSequence:
    """One token sequence with what each token is worth; ``mask`` is True where it is trained on."""

    trajectory_id: str
    input_ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    advantages: NDArray[np.float32]
    old_logprobs: NDArray[np.float32]
    temperature: float
    successful: bool


@dataclass(slots=True)
class DataReport:
    """What was taken and what was left out, and why."""

    rows: int = 0
    trajectories: int = 0
    groups: int = 0
    sequences: int = 0
    trained_tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter[str])  # trajectories by reason
    model_ids: set[str] = field(default_factory=set[str])
    tokenizer_hashes: set[str] = field(default_factory=set[str])
    weight_versions: set[str] = field(default_factory=set[str])
    mean_outcome: float = 0.0
    groups_of_calls_per_trajectory: float = 0.0


@dataclass(slots=True)
class _Trajectory:
    group_id: str
    outcome: float
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    labels: dict[int, bool | None] = field(default_factory=dict[int, "bool | None"])

    def take(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        for call in row["calls"]:
            if call["decision"] != "suppress" and call["null_reason"] != "no_call":
                self.labels[call["parallel_group"]] = call["reduced"]

    @property
    def ordered_labels(self) -> list[bool | None]:
        return [self.labels[turn] for turn in sorted(self.labels)]


def read_rows(urls: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of datasets; token columns as numpy arrays. Raises DataError and ExportError."""
    rows: list[dict[str, Any]] = []
    for url in urls:
        dataset = Dataset.reading(url)
        for path in dataset.parts():
            with dataset.fs.open(path, "rb") as source:
                rows += _rows_of(_table(source, path))
    return rows


def label_rows(
    rows: Sequence[dict[str, Any]], labelling: Labelling, *, needs_old_logprobs: bool = True
) -> tuple[list[TrainingSequence], DataReport]:
    """Rewards, advantages, their credit to tokens. DataError where nothing is left to train on."""
    report = DataReport(rows=len(rows))
    trajectories = _trajectories(rows, report)
    groups: defaultdict[str, list[_Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.group_id].append(trajectory)
    report.groups = len(groups)
    sequences: list[TrainingSequence] = []
    for group in groups.values():
        worth = _group_worth(group, labelling)
        if worth is None:
            reason = "group of one" if len(group) < 2 else "group with equal rewards"
            report.skipped[reason] += len(group)
            continue
        for trajectory, by_turn in zip(group, worth, strict=True):
            for row in trajectory.rows:
                sequence = _sequence(row, trajectory, by_turn, needs_old_logprobs)
                if sequence is not None:
                    sequences.append(sequence)
    report.sequences = len(sequences)
    report.trained_tokens = sum(int(sequence.mask.sum()) for sequence in sequences)
    if not report.trained_tokens:
        raise DataError(
            f"nothing to train on in {len(rows)} rows: "
            + (", ".join(f"{n} × {why}" for why, n in report.skipped.items()) or "no tokens")
        )
    return sequences, report


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Advantages of one trajectory: of turns that made calls, by turn index, and of the rest."""

    rest: float
    by_turn: dict[int, float] = field(default_factory=dict[int, float])


def _group_worth(group: list[_Trajectory], labelling: Labelling) -> list[Worth] | None:
    """The advantages of a group's trajectories; None when it teaches nothing."""
    outcomes = [trajectory.outcome for trajectory in group]
    match labelling.reward:
        case "outcome":
            rewards: list[float | None] = list(outcomes)
        case "otc":
            rewards = list(otc_rewards(outcomes, [len(t.labels) for t in group]))
        case "sparse":
            rewards = [sparse_reward(t.outcome, t.ordered_labels, labelling.options) for t in group]
        case "dense":
            return _dense_worth(group, labelling)
    advantages = _advantages(rewards, labelling)
    if all(advantage is None for advantage in advantages):
        return None
    return [Worth(rest=advantage or 0.0) for advantage in advantages]


def _dense_worth(group: list[_Trajectory], labelling: Labelling) -> list[Worth] | None:
    outcomes = [trajectory.outcome for trajectory in group]
    of_outcome = [advantage or 0.0 for advantage in _advantages(list(outcomes), labelling)]
    dense = [list(dense_rewards(t.outcome, t.ordered_labels, labelling.options)) for t in group]
    if labelling.baseline is None:
        of_calls: list[list[float | None]] = dense
    elif labelling.dense == "paper":
        of_calls = turn_advantages(dense, labelling.baseline)
    else:
        bonus = [
            [None if r is None else r - outcome for r in own]
            for own, outcome in zip(dense, outcomes, strict=True)
        ]
        of_calls = [
            [None if b is None else with_bonus(advantage, b) for b in own]
            for own, advantage in zip(
                turn_advantages(bonus, labelling.baseline), of_outcome, strict=True
            )
        ]
    worth = [
        Worth(
            rest=rest,
            by_turn={
                turn: rest if advantage is None else advantage
                for turn, advantage in zip(sorted(trajectory.labels), own, strict=True)
            },
        )
        for trajectory, rest, own in zip(group, of_outcome, of_calls, strict=True)
    ]
    some = any(w.rest or any(w.by_turn.values()) for w in worth)
    return worth if some else None


def _advantages(rewards: list[float | None], labelling: Labelling) -> list[float | None]:
    if labelling.baseline is None:
        return rewards
    return group_advantages(rewards, labelling.baseline)


def _trajectories(rows: Sequence[dict[str, Any]], report: DataReport) -> list[_Trajectory]:
    found: dict[str, _Trajectory] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        report.model_ids.add(row["model_id"])
        report.tokenizer_hashes.add(row["tokenizer_hash"])
        report.weight_versions.add(row["weight_version"])
        id_ = row["trajectory_id"]
        if not row["complete"]:
            left_out[id_] = "incomplete capture"
        elif row["outcome"] is None:
            left_out.setdefault(id_, "no outcome")
        else:
            trajectory = found.setdefault(id_, _Trajectory(row["group_id"], row["outcome"]))
            trajectory.take(row)
    for id_, reason in left_out.items():
        if reason == "incomplete capture":
            found.pop(id_, None)
        if id_ not in found:
            report.skipped[reason] += 1
    report.trajectories = len(found)
    if found:
        report.mean_outcome = sum(t.outcome for t in found.values()) / len(found)
        calls = sum(len(t.labels) for t in found.values())
        report.groups_of_calls_per_trajectory = calls / len(found)
    return list(found.values())


def _sequence(
    row: dict[str, Any], trajectory: _Trajectory, worth: Worth, needs_old_logprobs: bool
) -> TrainingSequence | None:
    mask = row["loss_mask"].astype(bool)
    segment_ids = row["segment_id"]
    advantages = np.where(mask, np.float32(worth.rest), np.float32(0))
    for call in row["calls"]:
        advantage = worth.by_turn.get(call["parallel_group"])
        if advantage is not None and call["end"] > call["start"]:
            of_turn = mask & (segment_ids == segment_ids[call["start"]])
            advantages[of_turn] = advantage
    if not mask.any():
        return None
    old_logprobs = row["old_logprobs"]
    if not np.isfinite(advantages).all():
        raise DataError(f"trajectory {row['trajectory_id']}: an advantage is not a number")
    if needs_old_logprobs and not np.isfinite(old_logprobs[mask]).all():
        raise DataError(
            f"trajectory {row['trajectory_id']} lacks behaviour log-probs, which this loss needs; "
            "use rwsft"
        )
    temperature = row["temperature"]
    if temperature is None:
        raise DataError(f"trajectory {row['trajectory_id']}: its turns differ in temperature")
    return TrainingSequence(
        trajectory_id=row["trajectory_id"],
        input_ids=row["input_ids"],
        mask=mask,
        advantages=advantages,
        old_logprobs=old_logprobs,
        temperature=temperature if row["logprobs_mode"] == "sampled" and temperature > 0 else 1.0,
        successful=trajectory.outcome >= 0.5,
    )


def _table(source: Any, path: str) -> pa.Table:
    try:
        table = pq.read_table(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no readable Parquet: {error}") from None
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: not of entrogate export")
    versions = set(table["schema_version"].to_pylist())
    if versions - {SCHEMA_VERSION}:
        raise DataError(f"{path} is of schema version {versions}; this reads {SCHEMA_VERSION}")
    return table.select(list(_COLUMNS))


def _rows_of(table: pa.Table) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type) and not pa.types.is_struct(column.type.value_type):
            flat, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
            columns[name] = [flat[a:b] for a, b in pairwise(ends)]
        else:
            columns[name] = column.to_pylist()
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]

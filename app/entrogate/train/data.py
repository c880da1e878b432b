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

import numpy as np
from numpy.typing import NDArray

from entrogate.errors import EntrogateError
from entrogate.export.dataset import Dataset
from entrogate.export.judgements import Judgements, Valued, credited, sampling_temperature
from entrogate.export.tables import Row, iter_rows
from entrogate.label.worth import Labelling, Worth

_COLUMNS = (
    "schema_version", "trajectory_id", "group_id", "branch_index", "model_id", "tokenizer_hash",
    "weight_version", "input_ids", "loss_mask", "old_logprobs", "temperature", "logprobs_mode",
    "segment_id", "calls", "outcome", "truncated", "complete",
)  # fmt: skip


class DataError(EntrogateError):
    """A dataset that cannot be trained on; the message is one line."""


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


def read_rows(urls: Iterable[str]) -> list[Row]:
    """The rows of datasets; token columns as numpy arrays. Raises ExportError."""
    return [
        row for url in urls for rows in iter_rows(Dataset.reading(url), _COLUMNS) for row in rows
    ]


def label_rows(
    rows: Sequence[Row], labelling: Labelling, *, needs_old_logprobs: bool = True
) -> tuple[list[TrainingSequence], DataReport]:
    """Rewards, advantages, their credit to tokens. DataError where nothing is left to train on."""
    judgements = Judgements(labelling.options)
    judged_rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        judgements.take(row)
        if row["outcome"] is not None:
            judged_rows[row["trajectory_id"]].append(row)
    valued = judgements.valued(labelling)
    report = _report(rows, judgements, valued)
    sequences: list[TrainingSequence] = []
    for id_, worth in valued.worth.items():
        for row in judged_rows[id_]:
            sequence = _sequence(row, worth, needs_old_logprobs)
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


def _report(rows: Sequence[Row], judgements: Judgements, valued: Valued) -> DataReport:
    found = judgements.found.values()
    count = max(len(found), 1)
    return DataReport(
        rows=len(rows),
        trajectories=len(found),
        groups=valued.groups,
        skipped=valued.skipped,
        model_ids={row["model_id"] for row in rows},
        tokenizer_hashes={row["tokenizer_hash"] for row in rows},
        weight_versions={row["weight_version"] for row in rows},
        mean_outcome=sum(judged.outcome for judged in found) / count,
        groups_of_calls_per_trajectory=sum(len(judged.labels) for judged in found) / count,
    )


def _sequence(row: Row, worth: Worth, needs_old_logprobs: bool) -> TrainingSequence | None:
    mask = row["loss_mask"].astype(bool)
    advantages = credited(row, worth)
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
    temperature = sampling_temperature(row)
    if temperature is None:
        raise DataError(f"trajectory {row['trajectory_id']}: its turns differ in temperature")
    return TrainingSequence(
        trajectory_id=row["trajectory_id"],
        input_ids=row["input_ids"],
        mask=mask,
        advantages=advantages,
        old_logprobs=old_logprobs,
        temperature=temperature,
        successful=row["outcome"] >= 0.5,
    )

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""What other trainers read: pure functions from an exported row to rows of theirs.

Token ids go over as they were sampled. TRL's formats are those of its 1.16, and `trl-sft` is tested
with it; verl's columns are those that it documents and have not been tried with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from entrogate.errors import ExportError
from entrogate.export.judgements import sampling_temperature
from entrogate.export.schema import SCHEMA
from entrogate.export.tables import Row
from entrogate.wire.body import from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one trainer wants its rows.

    ``adapt`` reads the ``columns`` of a row and makes any number of rows of ``schema`` of it; a
    row that is none of its business makes no row. ``schema`` None: JSON lines. ``wants`` says
    which rows are taken, for when there is none.
    """

    columns: tuple[str, ...]
    schema: pa.Schema | None
    adapt: Callable[[Row], Sequence[Row]]
    wants: str


def to_trl_sft(row: Row) -> list[Row]:
    """For TRL's ``SFTTrainer``, which takes ``input_ids`` with ``labels`` as they are."""
    if not _trainable(row):
        return []
    return [{name: row[name] for name in _TRL_SFT.names}]


def to_trl_async(row: Row) -> list[Row]:
    """For a rollout worker of TRL's ``AsyncGRPOTrainer``: a sample has one advantage.

    A row whose turns differ in it makes a sample of each: the tokens up to the last that is worth
    so much, the others masked. The loss is a sum over tokens, so it stays what it was. Raises
    ExportError where the log-probs of the behaviour policy are missing.
    """
    if row["advantages"] is None or not _trainable(row):
        return []
    mask = row["loss_mask"].astype(bool)
    if not np.isfinite(row["old_logprobs"][mask]).all():
        raise ExportError(f"trajectory {row['trajectory_id']} lacks behaviour log-probs")
    samples: list[Row] = []
    for advantage in np.unique(row["advantages"][mask]):
        mine = mask & (row["advantages"] == advantage)
        end = int(np.flatnonzero(mine)[-1]) + 1
        samples.append(
            {
                "trajectory_id": row["trajectory_id"],
                "group_id": row["group_id"],
                "input_ids": row["input_ids"][:end],
                "completion_mask": mine[:end].astype(np.int8),
                "old_log_probs": np.where(mine[:end], row["old_logprobs"][:end], np.float32(0)),
                "advantage": float(advantage),
                "temperature": sampling_temperature(row),
            }
        )
    return samples


def to_verl(row: Row) -> list[Row]:
    """For verl: its prompt columns, and under ``extra_info`` what an agent loop plays back.

    ``ground_truth`` is empty: an export holds rewards, not the gold answers they came from.
    """
    if not _trainable(row):
        return []
    start = int(np.flatnonzero(row["segment_id"] >= 0)[0])
    extra = {
        name: row[name]
        for name in ("trajectory_id", "group_id", "branch_index", "outcome", "reward_dense")
    }
    advantages = row["advantages"]
    return [
        {
            "data_source": "entrogate",
            "prompt": _prompt_messages(row["messages"]),
            "ability": "tool_use",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {
                **extra,
                "prompt_ids": row["input_ids"][:start],
                "response_ids": row["input_ids"][start:],
                "response_mask": row["loss_mask"][start:],
                "response_logprobs": row["old_logprobs"][start:],
                "reward_score": row["reward_sparse"],
                "advantages": None if advantages is None else advantages[start:],
                "temperature": sampling_temperature(row),
            },
        }
    ]


def to_jsonl(row: Row) -> list[Row]:
    """Every column under its own name."""
    return [row]


def _trainable(row: Row) -> bool:
    return bool(row["complete"] and row["loss_mask"].any())


def _prompt_messages(messages: str) -> list[dict[str, str]]:
    """The messages before the model's first answer, contents as text."""
    prompt: list[dict[str, str]] = []
    for message in from_json(messages):
        if message.get("role") == "assistant":
            break
        content: Any = message.get("content") or ""
        text = content if isinstance(content, str) else to_json(content).decode()
        prompt.append({"role": message.get("role", ""), "content": text})
    return prompt


def _typed(*names: str) -> list[pa.Field]:
    return [SCHEMA.field(name) for name in names]


_INTS, _MASK, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.int8()), pa.list_(pa.float32())
_TRL_SFT = pa.schema(_typed("input_ids", "labels", "trajectory_id", "group_id", "outcome"))
_TRL_ASYNC = pa.schema(
    [
        *_typed("input_ids"),
        ("completion_mask", _MASK),
        ("old_log_probs", _FLOATS),
        ("advantage", pa.float32()),
        ("temperature", pa.float32()),
        *_typed("trajectory_id", "group_id"),
    ]
)
_VERL_EXTRA = pa.struct(
    [
        *_typed("trajectory_id", "group_id", "branch_index"),
        ("prompt_ids", _INTS),
        ("response_ids", _INTS),
        ("response_mask", _MASK),
        ("response_logprobs", _FLOATS),
        ("reward_score", pa.float32()),
        *_typed("outcome", "reward_dense"),
        ("advantages", _FLOATS),
        ("temperature", pa.float32()),
    ]
)
_VERL = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", _VERL_EXTRA),
    ]
)
_OF_TOKENS = ("complete", "loss_mask", "input_ids", "trajectory_id", "group_id")
_OF_SAMPLING = ("old_logprobs", "temperature", "logprobs_mode", "advantages")
_TRAINABLE = "with complete captures and tokens to train on"

FORMATS: Mapping[str, Format] = {
    "trl-sft": Format(
        columns=(*_OF_TOKENS, "labels", "outcome"),
        schema=_TRL_SFT,
        adapt=to_trl_sft,
        wants=_TRAINABLE,
    ),
    "trl-async": Format(
        columns=(*_OF_TOKENS, *_OF_SAMPLING),
        schema=_TRL_ASYNC,
        adapt=to_trl_async,
        wants="with advantages (`entrogate label` fills them in)",
    ),
    "verl": Format(
        columns=(
            *_OF_TOKENS,
            *_OF_SAMPLING,
            "messages",
            "segment_id",
            "branch_index",
            "outcome",
            "reward_sparse",
            "reward_dense",
        ),
        schema=_VERL,
        adapt=to_verl,
        wants=_TRAINABLE,
    ),
    "jsonl": Format(columns=tuple(SCHEMA.names), schema=None, adapt=to_jsonl, wants="at all"),
}

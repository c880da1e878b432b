# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""The columns of an export. T is the length of the sequence; lists are parallel to ``input_ids``.

A row is one token sequence: a branch of a trajectory, from its first prompt to its last sampled
token (docs/store.md, branches). ``docs/export.md`` explains each column.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

CALL = pa.struct(
    [
        ("call_id", pa.string()),
        ("parallel_group", pa.int32()),  # calls of one turn share it; counts the groups of the row
        ("name", pa.string()),
        ("arguments", pa.string()),
        ("ok", pa.bool_()),  # a result came back
        ("start", pa.int32()),  # sampled tokens [start, end) of the row
        ("end", pa.int32()),
        ("h_before", pa.float32()),
        ("h_after", pa.float32()),
        ("delta_h", pa.float32()),
        ("delta_h_norm", pa.float32()),
        ("reduced", pa.bool_()),
        ("null_reason", pa.string()),
        ("decision", pa.string()),  # what was done
        ("propensity", pa.float32()),
        ("reason", pa.string()),
    ]
)

SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("trajectory_id", pa.string()),
        ("group_id", pa.string()),  # the tenant's task; without one, a hash of the first prompt
        ("task_id", pa.string()),
        ("model_id", pa.string()),
        ("tokenizer_hash", pa.string()),  # "" where the exporter was not told the model folder
        ("chat_template_hash", pa.string()),
        ("weight_version", pa.string()),
        ("policy_name", pa.string()),
        ("policy_version", pa.string()),
        ("branch_index", pa.int32()),
        ("created_at", pa.float64()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int32())),
        ("old_logprobs", pa.list_(pa.float32())),
        ("temperature", pa.float32()),  # null where the turns of the row differ
        ("top_p", pa.float32()),
        ("top_k", pa.int32()),
        ("logprobs_mode", pa.string()),  # sampled: of the distribution sampled from; raw
        ("entropy", pa.list_(pa.float32())),
        ("entropy_kind", pa.string()),
        ("entropy_k", pa.int32()),
        ("tail_mass", pa.list_(pa.float32())),
        ("margin", pa.list_(pa.float32())),
        ("segment_id", pa.list_(pa.int16())),  # the turn within the row, -1 outside sampled tokens
        ("token_kind", pa.list_(pa.int8())),  # types.SpanKind
        ("calls", pa.list_(CALL)),
        ("outcome", pa.float32()),  # null where no feedback speaks of this row
        ("outcome_source", pa.string()),
        ("reward_sparse", pa.float32()),
        ("reward_dense", pa.list_(pa.float32())),  # parallel to calls
        ("advantages", pa.list_(pa.float32())),  # null until `entrogate label`
        ("n_calls", pa.int32()),  # of the trajectory: groups of calls on the judged path
        ("n_reducing", pa.int32()),
        ("n_null", pa.int32()),
        ("truncated", pa.bool_()),
        ("complete", pa.bool_()),
    ],
    metadata={"entrogate.schema_version": str(SCHEMA_VERSION)},
)

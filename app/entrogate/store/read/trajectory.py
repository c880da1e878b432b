"""One trajectory, read back whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection, Row, select

from entrogate.store.admin.erasure import unknown
from entrogate.store.codec import load_spans, unpack_ints
from entrogate.store.read.listing import summary
from entrogate.store.read.rows import (
    Bounds,
    Call,
    CallDecision,
    Change,
    GivenFeedback,
    Segment,
    SpanRow,
    Tokens,
    Trajectory,
    TrajectoryRewards,
    Turn,
    TurnWithTokens,
)
from entrogate.store.read.shadows import shadows_of
from entrogate.store.read.token_lists import token_lists
from entrogate.store.schema import (
    TOKEN_ARRAYS,
    call_rewards,
    calls,
    changes,
    feedback,
    results,
    rewards,
    toolsets,
    trajectories,
    turns,
)
from entrogate.types import IntArray, SpanKind, ToolResult
from entrogate.wire.body import from_json

_BLOBS = tuple(turns.c[name] for name in ("prompt_token_ids", *TOKEN_ARRAYS))
_SUMMARY = tuple(column for column in turns.c if column not in _BLOBS)
_SCALARS = (
    "id",
    "turn_index",
    "branch_index",
    "parent_id",
    "request_id",
    "response_id",
    "choice_index",
    "created_at",
    "duration_seconds",
    "model",
    "weight_version",
    "finish_reason",
    "error",
    "capture_gap",
    "replayed",
    "n_messages",
    "n_prompt_tokens",
    "n_tokens",
    "wasted_tokens",
    "estimator",
    "top_k",
    "key_id",
)


def get_trajectory(connection: Connection, trajectory_id: str, *, tokens: bool) -> Trajectory:
    """Everything stored of one trajectory; token arrays only with ``tokens``.

    Raises `UnknownRecord`, `ErasedRecord`.
    """
    row = connection.execute(select(trajectories).where(trajectories.c.id == trajectory_id)).first()
    if row is None:
        raise unknown(connection, trajectory_id)
    columns = turns.c if tokens else _SUMMARY
    turn_rows = connection.execute(
        select(*columns).where(turns.c.trajectory_id == trajectory_id).order_by(turns.c.turn_index)
    ).all()
    parts = _Parts(connection, trajectory_id, tokens=tokens)
    prompts = prompts_of(turn_rows) if tokens else {}
    texts = toolset_texts(connection, turn_rows)
    return Trajectory(
        **summary(row),
        turns=tuple(_turn(turn, parts, prompts.get(turn.id)) for turn in turn_rows),
        toolsets={id_.hex(): _parsed(text) for id_, text in texts.items()},
        feedback=_feedback(connection, trajectory_id),
        rewards=_rewards(connection, trajectory_id),
    )


class _Parts:
    """What hangs on the turns of a trajectory, by turn id."""

    def __init__(self, connection: Connection, trajectory_id: str, *, tokens: bool) -> None:
        def rows(table: Any, *order: Any) -> Iterable[Row[*tuple[Any, ...]]]:
            query = select(table).join(turns, table.c.turn_id == turns.c.id)
            return connection.execute(
                query.where(turns.c.trajectory_id == trajectory_id).order_by(*order)
            )

        self.calls: defaultdict[str, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for call in rows(calls, calls.c.position):
            self.calls[call.turn_id].append(call)
        self.results: defaultdict[str, list[Row[*tuple[Any, ...]]]] = defaultdict(list)
        for result in rows(results, results.c.call_id):
            self.results[result.turn_id].append(result)
        self.changes = {change.turn_id: change for change in rows(changes)}
        self.dense = {reward.turn_id: reward.dense for reward in rows(call_rewards)}
        self.shadows = shadows_of(connection, trajectory_id, tokens=tokens)


def _turn(row: Row[*tuple[Any, ...]], parts: _Parts, prompt: IntArray | None) -> Turn:
    change = parts.changes.get(row.id)
    fields: dict[str, Any] = {name: getattr(row, name) for name in _SCALARS}
    fields |= {
        "segment": None if row.segment is None else read_segment(row.segment),
        "spans": tuple(
            SpanRow(kind=SpanKind(span.kind).name.lower(), start=span.start, stop=span.stop)
            for span in load_spans(row.spans)
        ),
        "altered": _parsed(row.altered),
        "metadata": _parsed(row.metadata),
        "toolset_id": None if row.toolset_id is None else row.toolset_id.hex(),
        "params": _parsed(row.params),
        "messages": _parsed(row.new_messages),
        "response": _parsed(row.response),
        "calls": tuple(_call(call) for call in parts.calls[row.id]),
        "results": tuple(
            ToolResult(call_id=result.call_id, content=result.content)
            for result in parts.results[row.id]
        ),
        "change": None if change is None else _change(change),
        "dense_reward": parts.dense.get(row.id),
        "shadow": parts.shadows.get(row.id),
    }
    return (
        Turn(**fields) if prompt is None else TurnWithTokens(**fields, tokens=_tokens(row, prompt))
    )


def read_segment(text: str) -> Segment:
    """The segment that `dump_segment` wrote, value by value."""
    return msgspec.json.decode(text, type=Segment)


def _call(row: Row[*tuple[Any, ...]]) -> Call:
    return Call(
        id=row.id,
        position=row.position,
        name=row.name,
        arguments=row.arguments,
        features=_parsed(row.features),
        decision=CallDecision(
            action=row.action,
            applied=row.applied,
            reason=row.reason,
            propensity=row.propensity,
            mode=row.mode,
            policy_name=row.policy_name,
            policy_version=row.policy_version,
        ),
    )


def _change(row: Row[*tuple[Any, ...]]) -> Change:
    return Change(
        before=_bounds(row.before_lower, row.before_upper),
        after=_bounds(row.after_lower, row.after_upper),
        delta=_bounds(row.delta_lower, row.delta_upper),
        delta_normalised=row.delta_normalised,
        reduced=row.reduced,
        null_reason=row.null_reason,
    )


def _bounds(lower: float | None, upper: float | None) -> Bounds | None:
    return None if lower is None else Bounds(lower=lower, upper=upper)


def _tokens(row: Row[*tuple[Any, ...]], prompt: IntArray) -> Tokens:
    return Tokens(prompt_token_ids=prompt.tolist(), **token_lists(row))


def prompts_of(turn_rows: Iterable[Row[*tuple[Any, ...]]]) -> dict[str, IntArray]:
    """The whole prompt of each turn, parents before children: shared prefix plus what it added."""
    prompts: dict[str, IntArray] = {}
    sequences: dict[str, IntArray] = {}
    for row in turn_rows:
        added = unpack_ints(row.prompt_token_ids)
        if row.prompt_offset:
            added = np.concatenate([sequences[row.parent_id][: row.prompt_offset], added])
        prompts[row.id] = added
        sequences[row.id] = np.concatenate([added, unpack_ints(row.token_ids)])
    return prompts


def toolset_texts(
    connection: Connection, turn_rows: Iterable[Row[*tuple[Any, ...]]]
) -> dict[bytes, str]:
    """The lists of tools of these turns as clients sent them, by id."""
    ids = {row.toolset_id for row in turn_rows if row.toolset_id is not None}
    rows = connection.execute(select(toolsets).where(toolsets.c.id.in_(ids)))
    return {row.id: row.content for row in rows}


def _feedback(connection: Connection, trajectory_id: str) -> tuple[GivenFeedback, ...]:
    query = select(feedback).where(feedback.c.trajectory_id == trajectory_id)
    rows = connection.execute(query.order_by(feedback.c.id)).mappings()
    return tuple(GivenFeedback(**{**row, "gold": _parsed(row["gold"])}) for row in rows)


def _rewards(connection: Connection, trajectory_id: str) -> TrajectoryRewards | None:
    query = select(rewards).where(rewards.c.trajectory_id == trajectory_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else TrajectoryRewards(**row)


def _parsed(text: str | None) -> Any:
    return None if text is None else from_json(text)

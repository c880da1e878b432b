"""Rewards of a trajectory from its stored labels and its last outcome."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select

from entrogate.label.rewards import RewardOptions, trajectory_rewards
from entrogate.store.codec import load_change
from entrogate.store.paths import TurnRow, judged_path
from entrogate.store.schema import call_rewards, changes, feedback, rewards, turns
from entrogate.types import EntropyChange

OPTIONS = RewardOptions()
"""What the paper leaves open, as stored with every reward."""


def refresh_rewards(connection: Connection, trajectory_id: str) -> dict[str, Any] | None:
    """Compute and store the rewards of a trajectory; None while it has no outcome or no turn."""
    said = connection.execute(
        select(feedback.c.score, feedback.c.turn_id)
        .where(feedback.c.trajectory_id == trajectory_id)
        .order_by(feedback.c.id.desc())
        .limit(1)
    ).first()
    rows = connection.execute(
        select(turns.c.id, turns.c.parent_id, turns.c.has_calls)
        .where(turns.c.trajectory_id == trajectory_id)
        .order_by(turns.c.turn_index)
    ).all()
    if said is None or not rows:
        return None
    path = judged_path(rows, said.turn_id)
    labels = _labels(connection, path)
    callers = [caller for caller, _ in labels]
    computed = trajectory_rewards(said.score, [change for _, change in labels], OPTIONS)
    row = {
        "trajectory_id": trajectory_id,
        "turn_id": path[-1].id,
        "outcome": computed.outcome,
        "sparse": computed.sparse,
        "n_groups": computed.n_groups,
        "n_labelled": computed.n_labelled,
        "n_reduced": computed.n_reduced,
        "alpha": OPTIONS.alpha,
        "no_calls": OPTIONS.no_calls,
        "all_unknown": OPTIONS.all_unknown,
        "computed_at": time.time(),
    }
    for table in (rewards, call_rewards):
        connection.execute(delete(table).where(table.c.trajectory_id == trajectory_id))
    connection.execute(rewards.insert(), row)
    dense = [
        {"turn_id": turn_id, "trajectory_id": trajectory_id, "dense": value}
        for turn_id, value in zip(callers, computed.dense, strict=True)
    ]
    if dense:
        connection.execute(call_rewards.insert(), dense)
    return row | {"dense": list(computed.dense)}


def _labels(
    connection: Connection, path: Sequence[TurnRow]
) -> list[tuple[str, EntropyChange | None]]:
    """Per group of calls on the path: the turn that made them, and their label if there is one."""
    ids = [row.id for row in path]
    found = connection.execute(select(changes).where(changes.c.turn_id.in_(ids))).mappings()
    known: Mapping[str, EntropyChange] = {row["turn_id"]: load_change(dict(row)) for row in found}
    followers = [*ids[1:], None]
    labels: list[tuple[str, EntropyChange | None]] = []
    for row, follower in zip(path, followers, strict=True):
        change = None if follower is None else known.get(follower)
        if row.has_calls and (change is None or change.null_reason != "no_call"):
            labels.append((row.id, change))
    return labels

"""Outcomes: what the caller says of an answer, and what follows for the rewards."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, select

from entrogate.access import belongs, tenant_of
from entrogate.errors import UnknownRecord
from entrogate.label.f1 import best_f1
from entrogate.store.admin.audit import ANYBODY, Act, Deed, note
from entrogate.store.admin.erasure import unknown
from entrogate.store.commits import next_commit
from entrogate.store.schema import calls, feedback, trajectories, turns
from entrogate.store.write.rewards import refresh_rewards
from entrogate.store.write.shadows import judge_shadows, lock_trajectory

MAX_CHARACTERS = 65_536  # of an answer
MAX_GOLDS = 100
MAX_GOLD_CHARACTERS = 262_144  # of all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One checked piece of feedback; ``score`` is in [0, 1]."""

    target: str  # trajectory_id | response_id | tool_call_id
    target_id: str
    score: float
    answer: str | None
    gold: tuple[str, ...] | None
    comment: str | None

    @classmethod
    def of(
        cls,
        *,
        targets: Mapping[str, str | None],
        score: float | None,
        answer: str | None,
        gold: str | Sequence[str] | None,
        comment: str | None,
    ) -> Feedback:
        """Check what was given. Raises ValueError with what would be right."""
        named = [(name, value) for name, value in targets.items() if value is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of {', '.join(targets)}, not {len(named)}")
        golds = (gold,) if isinstance(gold, str) else None if gold is None else tuple(gold)
        if (answer is None) != (golds is None) or (score is None) == (answer is None):
            raise ValueError("give either a score, or an answer together with its gold")
        if golds is not None and not golds:
            raise ValueError("gold is empty; give one or more accepted answers")
        if answer is not None and golds is not None:
            _check_sizes(answer, golds)
            score = best_f1(answer, golds)
        assert score is not None
        if not math.isfinite(score) or not 0 <= score <= 1:
            raise ValueError(f"score is {score}, it must be between 0 and 1")
        target, target_id = named[0]
        return cls(
            target=target,
            target_id=target_id,
            score=float(score),
            answer=answer,
            gold=golds,
            comment=comment,
        )


def _check_sizes(answer: str, golds: Sequence[str]) -> None:
    """ValueError for more than answers are: a score is made of words, on the way of requests."""
    if len(golds) > MAX_GOLDS:
        raise ValueError(f"gold has {len(golds)} answers; give at most {MAX_GOLDS}")
    if len(answer) > MAX_CHARACTERS:
        raise ValueError(f"answer has {len(answer)} characters; give at most {MAX_CHARACTERS}")
    if (together := sum(map(len, golds))) > MAX_GOLD_CHARACTERS:
        raise ValueError(
            f"gold has {together} characters in all; give at most {MAX_GOLD_CHARACTERS}"
        )


def add_feedback(
    connection: Connection,
    given: Feedback,
    tenant: str | None = None,
    key_id: str | None = None,
) -> dict[str, Any]:
    """Store it, set the trajectory's outcome, recompute its rewards and score its shadows.

    ``key_id`` is the API key that says so. Raises `UnknownRecord` also for what is not of
    ``tenant`` (None means any), `ErasedRecord` for a trajectory that was erased.
    """
    trajectory_id, turn_id = _find_target(connection, given, tenant)
    lock_trajectory(connection, trajectory_id)
    sequence = next_commit(connection)  # under the lock: no later change has a lower one
    row = {
        "trajectory_id": trajectory_id,
        "turn_id": turn_id,
        "target": given.target,
        "target_id": given.target_id,
        "score": given.score,
        "answer": given.answer,
        "gold": None if given.gold is None else orjson.dumps(given.gold).decode(),
        "comment": given.comment,
        "created_at": time.time(),
        "key_id": key_id,
    }
    inserted = connection.execute(feedback.insert(), row).inserted_primary_key
    connection.execute(
        trajectories.update()
        .where(trajectories.c.id == trajectory_id)
        .values(outcome=given.score, sequence=sequence)
    )
    deed = Deed(
        actor=key_id or ANYBODY,
        action=Act.JUDGE,
        target=trajectory_id,
        tenant=tenant_of(trajectory_id),
        detail={"score": given.score},
    )
    note(connection, deed)
    computed = refresh_rewards(connection, trajectory_id)
    return {
        "id": None if inserted is None else inserted[0],
        "trajectory_id": trajectory_id,
        "score": given.score,
        "rewards": computed,
        "shadows": dict(judge_shadows(connection, trajectory_id)),
    }


def _find_target(
    connection: Connection, given: Feedback, tenant: str | None
) -> tuple[str, str | None]:
    """The trajectory, and the turn unless the whole trajectory is meant."""
    if given.target == "trajectory_id":
        whole = select(trajectories.c.id).where(trajectories.c.id == given.target_id)
        if tenant is not None:
            whole = whole.where(trajectories.c.tenant == tenant)
        if connection.execute(whole).first() is not None:
            return given.target_id, None
        if belongs(given.target_id, tenant):
            raise unknown(connection, given.target_id)
    else:
        query = select(turns.c.trajectory_id, turns.c.id)
        if given.target == "tool_call_id":
            query = query.join(calls, calls.c.turn_id == turns.c.id)
            query = query.where(calls.c.id == given.target_id)
        else:
            query = query.where(turns.c.response_id == given.target_id)
        if tenant is not None:
            query = query.join(trajectories, trajectories.c.id == turns.c.trajectory_id)
            query = query.where(trajectories.c.tenant == tenant)
        query = query.order_by(turns.c.choice_index, turns.c.turn_index.desc())
        row = connection.execute(query.limit(1)).first()
        if row is not None:
            return row.trajectory_id, row.id
    raise UnknownRecord(f"no {given.target} {given.target_id!r} is stored")

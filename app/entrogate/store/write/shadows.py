"""Writing shadows, and scoring them: by gold, a user's grader, or agreement, in this order."""

from __future__ import annotations

import time
from collections import Counter

from sqlalchemy import Connection, select

from entrogate.errors import UnknownRecord
from entrogate.label.shadows import ByAgreement, ByGold
from entrogate.store.outcomes import JudgedBy, read_judged
from entrogate.store.schema import shadows, trajectories, turns
from entrogate.store.write.rows import Row, capture_columns
from entrogate.types import ShadowRecord

SCHEMA_VERSION = 1
"""Stored with every shadow: what its columns mean."""


def lock_trajectory(connection: Connection, trajectory_id: str) -> None:
    """From here on no turn, shadow or feedback is added to it: the last one is the last."""
    query = select(trajectories.c.id).where(trajectories.c.id == trajectory_id)
    connection.execute(query.with_for_update(key_share=True))


def add_shadow(connection: Connection, record: ShadowRecord) -> Counter[str]:
    """Store it, and score it if its trajectory has an outcome; how many were scored, by what.

    Raises UnknownRecord where its turn is not stored (any more).
    """
    lock_trajectory(connection, record.trajectory_id)
    turn = select(turns.c.id).where(turns.c.id == record.turn_id)
    if connection.execute(turn).first() is None:
        raise UnknownRecord(f"no turn {record.turn_id!r} is stored")
    connection.execute(shadows.insert(), _row(record))
    return judge_shadows(connection, record.trajectory_id)


def judge_shadows(connection: Connection, trajectory_id: str) -> Counter[str]:
    """Score the shadows of a trajectory by its latest feedback; how many got a new score, by what.

    The caller holds the trajectory (`lock_trajectory`). A score of the user's grader stays unless
    there is gold.
    """
    told: Counter[str] = Counter()
    columns = (
        shadows.c.turn_id,
        shadows.c.called,
        shadows.c.content,
        shadows.c.score,
        shadows.c.judged_by,
    )
    query = select(*columns).where(shadows.c.trajectory_id == trajectory_id)
    rows = connection.execute(query).all()
    judged = read_judged(connection, trajectory_id) if rows else None
    if judged is None:
        return told
    by, scorer = JudgedBy.AGREEMENT, ByAgreement(final=judged.final, outcome=judged.outcome)
    if judged.gold:
        by, scorer = JudgedBy.GOLD, ByGold(judged.gold, answer=judged.answer, final=judged.final)
    for row in rows:
        if row.turn_id not in judged.turn_ids:
            continue
        if by is JudgedBy.AGREEMENT and row.judged_by in (JudgedBy.GOLD, JudgedBy.GRADER):
            continue
        score = 0.0 if row.called else scorer.score(row.content)  # a call is no answer
        if (score, None if score is None else by) == (row.score, row.judged_by):
            continue
        set_score(connection, row.turn_id, score, by)
        told[by.value] += score is not None
    return told


def set_score(connection: Connection, turn_id: str, score: float | None, by: JudgedBy) -> None:
    """Write what the shadow of a turn is worth; None takes an earlier score back."""
    known = score is not None
    connection.execute(
        shadows.update()
        .where(shadows.c.turn_id == turn_id)
        .values(
            score=score,
            judged_by=by.value if known else None,
            judged_at=time.time() if known else None,
        )
    )


def grade_shadow(connection: Connection, turn_id: str, score: float) -> bool:
    """Write what the user's grader says, unless gold says something or the shadow is gone; whether
    it was written."""
    columns = select(shadows.c.judged_by, shadows.c.trajectory_id)
    row = connection.execute(columns.where(shadows.c.turn_id == turn_id)).first()
    if row is None:
        return False
    lock_trajectory(connection, row.trajectory_id)
    row = connection.execute(columns.where(shadows.c.turn_id == turn_id)).first()
    if row is None or row.judged_by == JudgedBy.GOLD:
        return False
    set_score(connection, turn_id, score, JudgedBy.GRADER)
    return True


def _row(record: ShadowRecord) -> Row:
    return capture_columns(record.capture) | {
        "turn_id": record.turn_id,
        "trajectory_id": record.trajectory_id,
        "schema_version": SCHEMA_VERSION,
        "purpose": record.purpose.value,
        "way": record.way,
        "created_at": record.created_at,
        "duration_seconds": record.duration_seconds,
        "model": record.model,
        "weight_version": record.weight_version,
        "finish_reason": record.finish_reason,
        "called": record.called,
        "content": record.content,
        "capture_gap": record.capture_gap,
        "n_kept": record.n_kept,
    }

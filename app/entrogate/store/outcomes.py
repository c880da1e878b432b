"""The outcome of a trajectory, for scoring its shadows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select

from entrogate.store.paths import TurnRow, judged_path
from entrogate.store.schema import feedback, turns
from entrogate.wire.body import from_json


class JudgedBy(StrEnum):
    """The source of a shadow's score, in the order of preference."""

    GOLD = "gold"
    GRADER = "grader"
    AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A trajectory's outcome and gold, and the turns that they apply to."""

    outcome: float
    final: str  # the text of the last turn that the outcome speaks of
    turn_ids: frozenset[str]  # those on the way to it
    answer: str
    gold: tuple[str, ...]  # empty: none was given


def read_judged(connection: Connection, trajectory_id: str) -> Judged | None:
    """What the latest feedback says, and the latest gold where there is any; None without
    feedback."""
    given = (
        select(feedback.c.score, feedback.c.turn_id, feedback.c.answer, feedback.c.gold)
        .where(feedback.c.trajectory_id == trajectory_id)
        .order_by(feedback.c.id.desc())
        .limit(1)  # there may be any number, each with much gold
    )
    latest = connection.execute(given).first()
    golden = connection.execute(given.where(feedback.c.gold.is_not(None))).first()
    rows = connection.execute(
        select(turns.c.id, turns.c.parent_id, turns.c.has_calls)
        .where(turns.c.trajectory_id == trajectory_id)
        .order_by(turns.c.turn_index)
    ).all()
    if latest is None or not rows:
        return None
    path = _path(rows, latest.turn_id if golden is None else golden.turn_id)
    return Judged(
        outcome=latest.score,
        final=text_of(connection, path[-1].id),
        turn_ids=frozenset(row.id for row in path),
        answer="" if golden is None else golden.answer,
        gold=() if golden is None else tuple(from_json(golden.gold)),
    )


def _path(rows: Sequence[TurnRow], turn_id: str | None) -> Sequence[TurnRow]:
    """The turns that an outcome of this turn speaks of: up to it where it is an answer, and on to
    the end (`judged_path`) where it called."""
    path = judged_path(rows, turn_id)
    at = next((index for index, row in enumerate(path) if row.id == turn_id), None)
    return path if at is None or path[at].has_calls else path[: at + 1]


def text_of(connection: Connection, turn_id: str) -> str:
    """The text of a turn's answer; empty where it has none, as one that only calls."""
    stored = select(turns.c.response).where(turns.c.id == turn_id)
    message: dict[str, Any] = from_json(connection.execute(stored).scalar_one())
    content = message.get("content")
    return content if isinstance(content, str) else ""

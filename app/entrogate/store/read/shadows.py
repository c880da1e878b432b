"""Stored shadows, and what a user's grader is asked about them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, select

from entrogate.store.outcomes import JudgedBy, read_judged
from entrogate.store.read.rows import Shadow, ShadowTokens, ShadowWithTokens
from entrogate.store.read.token_lists import token_lists
from entrogate.store.schema import TOKEN_ARRAYS, calls, shadows, trajectories, turns
from entrogate.wire.body import from_json

_NAMES = tuple(field.name for field in fields(Shadow))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToGrade:
    """One shadow that only the user's grader can score."""

    turn_id: str
    answer: str
    shared: dict[str, Any]  # by all shadows of the trajectory
    said: Said

    def asked(self) -> dict[str, Any]:
        """What the grader is told, as JSON.

        Made when it is wanted: each turn of a trajectory was asked with all before it, and all of
        them at once take the square of its length.
        """
        return self.shared | {
            "turn_id": self.turn_id,
            "messages": self.said.before(self.turn_id),
            "calls": self.said.calls(self.turn_id),
            "answer": self.answer,
        }


def shadows_of(
    connection: Connection, trajectory_id: str, *, tokens: bool = False
) -> dict[str, Shadow]:
    """The shadows of a trajectory by the id of their turn; their arrays only with ``tokens``."""
    names = ("turn_id", *_NAMES, *(TOKEN_ARRAYS if tokens else ()))
    query = select(*(shadows.c[name] for name in names))
    rows = connection.execute(query.where(shadows.c.trajectory_id == trajectory_id)).all()
    found: dict[str, Shadow] = {}
    for row in rows:
        values = {name: getattr(row, name) for name in _NAMES}
        if tokens:
            arrays = ShadowTokens(**token_lists(row))
            found[row.turn_id] = ShadowWithTokens(**values, tokens=arrays)
        else:
            found[row.turn_id] = Shadow(**values)
    return found


def shadows_to_grade(
    connection: Connection, trajectory_id: str, *, anew: bool = True
) -> list[ToGrade]:
    """What to ask the user's grader about a trajectory with an outcome and no gold.

    Without ``anew`` it is not asked about what it has graded.

    Shadows that called again are no answers: nobody is asked about them.
    """
    judged = read_judged(connection, trajectory_id)
    if judged is None or judged.gold:
        return []
    query = select(shadows.c.turn_id, shadows.c.content).where(
        shadows.c.trajectory_id == trajectory_id,
        ~shadows.c.called,
        shadows.c.judged_by.is_distinct_from(JudgedBy.GOLD.value),
    )
    if not anew:
        query = query.where(shadows.c.judged_by.is_distinct_from(JudgedBy.GRADER.value))
    rows = [row for row in connection.execute(query) if row.turn_id in judged.turn_ids]
    if not rows:
        return []
    columns = (trajectories.c.task_id, trajectories.c.model, trajectories.c.metadata)
    about = connection.execute(select(*columns).where(trajectories.c.id == trajectory_id)).one()
    said = Said(connection, trajectory_id)
    shared: dict[str, Any] = {
        "schema_version": 1,
        "trajectory_id": trajectory_id,
        "task_id": about.task_id,
        "model": about.model,
        "metadata": None if about.metadata is None else from_json(about.metadata),
        "outcome": judged.outcome,
        "final": judged.final,
    }
    return [
        ToGrade(turn_id=row.turn_id, answer=row.content, shared=shared, said=said) for row in rows
    ]


class Said:
    """The messages and the calls of one trajectory."""

    def __init__(self, connection: Connection, trajectory_id: str) -> None:
        columns = (turns.c.id, turns.c.parent_id, turns.c.n_messages)
        query = select(*columns, turns.c.new_messages, turns.c.response)
        rows = connection.execute(query.where(turns.c.trajectory_id == trajectory_id))
        self._turns = {row.id: row for row in rows}
        query = select(calls.c.turn_id, calls.c.name, calls.c.arguments)
        query = query.join(turns, turns.c.id == calls.c.turn_id)
        query = query.where(turns.c.trajectory_id == trajectory_id).order_by(calls.c.position)
        self._calls = connection.execute(query).all()

    def before(self, turn_id: str) -> list[dict[str, Any]]:
        """What the model was asked in this turn: the messages of its request."""
        parts: list[list[dict[str, Any]]] = []
        row = self._turns.get(turn_id)
        while row is not None:
            new = from_json(row.new_messages)
            parts.append(new if not parts else [*new, from_json(row.response)])
            if len(new) + 1 >= row.n_messages:  # a first turn, or a history that was rewritten
                break
            row = self._turns.get(row.parent_id)
        return [message for part in reversed(parts) for message in part]

    def calls(self, turn_id: str) -> list[dict[str, str]]:
        """The calls that the shadow stands in place of."""
        return [
            {"name": call.name, "arguments": call.arguments}
            for call in self._calls
            if call.turn_id == turn_id
        ]

"""Shadows in an open store."""

from __future__ import annotations

from collections import Counter

from entrogate.store.admin.administration import Run
from entrogate.store.read.shadows import ToGrade, shadows_to_grade
from entrogate.store.write.shadows import add_shadow, grade_shadow
from entrogate.types import ShadowRecord


class ShadowStore:
    """``write`` and ``read`` run transactions."""

    def __init__(self, *, write: Run, read: Run) -> None:
        self._write = write
        self._read = read

    async def add(self, record: ShadowRecord) -> Counter[str]:
        """Store it beside its turn; how many shadows of its trajectory this scored, by what.

        Raises `UnknownRecord` where the turn is not stored, or was erased; `StoreError`.
        """
        return await self._write(lambda connection: add_shadow(connection, record))

    async def to_grade(self, trajectory_id: str, *, anew: bool = True) -> list[ToGrade]:
        """What a user's grader is to be asked about a trajectory, if anything; without ``anew``
        only about what it has not graded."""
        return await self._read(
            lambda connection: shadows_to_grade(connection, trajectory_id, anew=anew)
        )

    async def grade(self, turn_id: str, score: float) -> bool:
        """Write what the user's grader says of the shadow of a turn; False where gold has said
        something by now, or the shadow is gone."""
        return await self._write(lambda connection: grade_shadow(connection, turn_id, score))

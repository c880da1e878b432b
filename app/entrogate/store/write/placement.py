"""Where a turn goes in its trajectory: its index, its branch and what its prompt adds.

A turn continues the branch of its parent when its prompt starts with the parent's prompt and
sample, token for token, and no other turn continues that branch yet. Otherwise it opens a new
branch: vLLM's token ids are the truth, and nothing is tokenised again.
"""

from __future__ import annotations

from dataclasses import dataclass

from entrogate.store.codec import sequence_hash
from entrogate.types import TurnRecord


@dataclass(slots=True, kw_only=True)
class Extent:
    """How far a trajectory goes: the next turn index and the next branch index."""

    n_turns: int = 0
    n_branches: int = 0


@dataclass(slots=True, kw_only=True)
class Tail:
    """A turn that others may continue; ``continued`` once one has taken over its branch."""

    trajectory_id: str
    branch_index: int
    sequence_length: int
    sequence_hash: bytes
    continued: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``prompt_offset`` tokens of the prompt are the parent's prompt and sample."""

    turn_index: int
    branch_index: int
    parent_id: str | None
    prompt_offset: int
    orphaned: bool  # names a parent that is not stored


class Placement:
    """Places turns one after the other, starting from what the database holds.

    ``extents`` maps trajectory ids, ``tails`` turn ids; both grow with the turns placed.
    """

    def __init__(self, extents: dict[str, Extent], tails: dict[str, Tail]) -> None:
        self._extents = extents
        self._tails = tails

    def place(self, record: TurnRecord) -> Place:
        """The place of the next turn of the batch."""
        extent = self._extents.setdefault(record.trajectory_id, Extent())
        parent = None if record.parent is None else self._tails.get(record.parent.turn_id)
        offset = 0 if parent is None else _shared_prefix(record, parent)
        if parent is not None and offset > 0 and not parent.continued:
            parent.continued = True
            branch_index = parent.branch_index
        else:
            branch_index = extent.n_branches
            extent.n_branches += 1
        turn_index = extent.n_turns
        extent.n_turns += 1
        self._tails[record.turn_id] = Tail(
            trajectory_id=record.trajectory_id,
            branch_index=branch_index,
            sequence_length=len(record.prompt_token_ids) + len(record.capture),
            sequence_hash=record.sequence_hash,
            continued=False,
        )
        return Place(
            turn_index=turn_index,
            branch_index=branch_index,
            parent_id=record.parent.turn_id if record.parent and parent else None,
            prompt_offset=offset,
            orphaned=record.parent is not None and parent is None,
        )


def _shared_prefix(record: TurnRecord, parent: Tail) -> int:
    """The parent's sequence length when the prompt starts with that sequence, else 0."""
    length = parent.sequence_length
    if parent.trajectory_id != record.trajectory_id or len(record.prompt_token_ids) < length:
        return 0
    matches = sequence_hash(record.prompt_token_ids[:length]) == parent.sequence_hash
    return length if matches else 0

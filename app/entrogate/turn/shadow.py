"""Shadows of a turn: which of its choices get one, and what one is asked for and becomes.

A shadow is what the model would have said in place of the calls of a choice (`turn.without`),
decoded once the client has its answer.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entrogate.gate.draws import unit_draw
from entrogate.turn.parts import Parts
from entrogate.turn.state import Leg, Turn
from entrogate.turn.without import Asked, Without, decode_without
from entrogate.types import (
    Action,
    ShadowPurpose,
    ShadowRecord,
    TurnRecord,
)
from entrogate.upstream.capabilities import Way
from entrogate.upstream.resume import kept_to_resume
from entrogate.wire.spelled import spells_call

_IDS = "i"  # of an array: a list takes ten times as much of what waits


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowJob:
    """A shadow that is to be decoded; ``said`` is the text of the answer before its first call."""

    asked: Asked
    turn_id: str
    trajectory_id: str
    purpose: ShadowPurpose
    said: str
    model: str
    weight_version: str
    lease_version: str | None  # of the weights to keep loaded; None: not published here

    @property
    def size_bytes(self) -> int:
        """Of what it keeps in memory, roughly."""
        tokens = len(self.asked.prompt_token_ids) + len(self.asked.kept_token_ids)
        headers = sum(map(len, self.asked.headers.values()))
        text = self.asked.request.size_bytes + headers + len(self.said)
        return text + array(_IDS).itemsize * tokens


def purpose_of(record: TurnRecord, share_of: Callable[[str], float]) -> ShadowPurpose | None:
    """Why a stored turn gets a shadow; None: it gets none.

    Only calls that the model was free to make have one, and only where they were not suppressed:
    then the turn itself is the answer without the call. ``share_of`` says for a tool which share of
    the trajectories is sampled; of a sampled trajectory every such turn is.
    """
    first = record.calls[0] if record.calls else None
    if first is None or record.error is not None or first.features.tool_choice != "auto":
        return None
    if first.decision.applied is Action.SUPPRESS:
        return None
    if first.decision.is_audited:
        return ShadowPurpose.AUDIT
    share = max(share_of(call.name) for call in record.calls)
    return ShadowPurpose.SAMPLE if shadow_draw(record.trajectory_id) < share else None


def shadow_draw(trajectory_id: str) -> float:
    """A number in [0, 1) for a trajectory: the same in every gateway."""
    return unit_draw(trajectory_id.encode(), person=b"shadow")


def request_shadow(
    turn: Turn,
    leg: Leg,
    record: TurnRecord,
    *,
    purpose: ShadowPurpose,
    headers: Mapping[str, str],
) -> ShadowJob | None:
    """The shadow of one recorded choice; None where it cannot be decoded.

    That is where the tokens before its call are not known exactly. ``headers`` are sent to the
    model server.
    """
    choice = leg.choices.get(record.choice_index)
    if choice is None:
        return None
    masked = turn.capabilities.way is Way.MASK
    position = choice.tokens.call_position() if masked else 0
    known = record.capture_gap is None and bool(leg.prompt_token_ids)
    if position is None or (masked and not known):
        return None
    asked = Asked(
        request=kept_to_resume(leg.request) if masked else leg.request,
        capabilities=turn.capabilities,
        prompt_token_ids=array(_IDS, leg.prompt_token_ids if masked else ()),
        kept_token_ids=array(_IDS, choice.tokens.ids[:position]),
        headers=headers,
    )
    said = "".join(choice.content) if masked else ""
    return ShadowJob(
        asked=asked,
        turn_id=record.turn_id,
        trajectory_id=record.trajectory_id,
        purpose=purpose,
        said=said,
        model=record.model,
        weight_version=record.weight_version,
        lease_version=turn.weight_version,
    )


async def decode_shadow(
    parts: Parts, job: ShadowJob, *, max_tokens: int, reasoning_end: str
) -> ShadowRecord | None:
    """The shadow, as it is stored; None where no token may follow. Raises UpstreamError."""
    created_at, began = time.time(), time.monotonic()
    found = await decode_without(parts, job.asked, max_tokens)
    if found is None:
        return None
    text = found.text.rpartition(reasoning_end)[2] if reasoning_end else found.text
    capture = found.capture()
    return ShadowRecord(
        turn_id=job.turn_id,
        trajectory_id=job.trajectory_id,
        purpose=job.purpose,
        way=found.way.value,
        created_at=created_at,
        duration_seconds=time.monotonic() - began,
        model=job.model,
        weight_version=job.weight_version,
        finish_reason=found.finish_reason,
        called=_called(job, found),
        content=job.said + text,
        capture=capture,
        capture_gap=found.tokens.gap,
        n_kept=len(job.asked.kept_token_ids),
    )


def _called(job: ShadowJob, found: Without) -> bool:
    """Did the model call all the same, as text or by the tool-call token?"""
    if found.tokens.call_position() is not None:
        return True
    return spells_call(found.text, frozenset(job.asked.request.tool_names))

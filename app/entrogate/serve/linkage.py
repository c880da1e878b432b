"""Which trajectory a request belongs to, without asking anything of the client (design: linkage).

Order: the ``x-entrogate-trajectory-id`` header or ``metadata.trajectory_id``; tool-call ids that we
minted; a fingerprint of the message history; else a new trajectory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from entrogate.errors import RequestError, StoreError
from entrogate.types import ToolResult, TurnHead
from entrogate.wire.history import EarlierCall, fingerprint, last_assistant
from entrogate.wire.request import ChatRequest

TRAJECTORY_HEADER = "x-entrogate-trajectory-id"
TASK_HEADER = "x-entrogate-task-id"
_CALL_PREFIX = "call_eg"
_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")


class Heads(Protocol):
    """What linkage asks of the store."""

    async def head_of_call(self, call_id: str) -> TurnHead | None: ...
    async def head_of_fingerprint(self, fingerprint: bytes) -> TurnHead | None: ...
    async def head_of_trajectory(self, trajectory_id: str) -> TurnHead | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where a turn attaches: its trajectory, and the turn it follows if there is one.

    ``fault``: the store could not be asked, so there may be one; the request is answered anyway.
    """

    trajectory_id: str
    task_id: str | None
    parent: TurnHead | None
    fault: StoreError | None = None


def mint(kind: str) -> str:
    """A new id: ``turn_…``, ``traj_…`` or, for tool calls, ``call_eg…``; 96 random bits."""
    prefix = _CALL_PREFIX if kind == "call" else kind + "_"
    return prefix + os.urandom(12).hex()


async def link(
    heads: Heads,
    request: ChatRequest,
    headers: Mapping[str, str],
    earlier: list[EarlierCall],
    *,
    follows: TurnHead | None = None,
) -> Link:
    """Find the trajectory and the parent turn of ``request``; ``follows`` is the one it names.

    A fault of the store is no error.

    Raises RequestError for an id that is not one to be stored or shown.
    """
    metadata = request.metadata or {}
    named = _checked(headers.get(TRAJECTORY_HEADER) or metadata.get("trajectory_id"))
    task_id = _checked(headers.get(TASK_HEADER) or metadata.get("task_id"))
    fault = None
    try:
        parent = await _parent(heads, request, named, earlier, follows)
    except StoreError as error:
        parent, fault = follows, error
    trajectory_id = named or (parent.trajectory_id if parent is not None else mint("traj"))
    return Link(trajectory_id=trajectory_id, task_id=task_id, parent=parent, fault=fault)


async def _parent(
    heads: Heads,
    request: ChatRequest,
    named: str | None,
    earlier: list[EarlierCall],
    follows: TurnHead | None,
) -> TurnHead | None:
    parent = follows or await _parent_by_history(heads, request, earlier)
    if named is not None and (parent is None or parent.trajectory_id != named):
        return await heads.head_of_trajectory(named)
    return parent


def new_results(parent: TurnHead | None, earlier: list[EarlierCall]) -> tuple[ToolResult, ...]:
    """The results that this request brings for calls of ours: those of the last calling turn."""
    if parent is None or not earlier:
        return ()
    return tuple(
        ToolResult(call_id=call.call_id, content=call.result)
        for call in earlier
        if call.turn == earlier[-1].turn
        and call.result is not None
        and call.call_id.startswith(_CALL_PREFIX)
    )


async def _parent_by_history(
    heads: Heads, request: ChatRequest, earlier: list[EarlierCall]
) -> TurnHead | None:
    """The turn that wrote the last assistant message: by its call ids, else by what was said."""
    last = last_assistant(request.messages)
    if last is None:
        return None
    if not earlier or earlier[-1].turn != last:
        head = await heads.head_of_fingerprint(fingerprint(request.messages[: last + 1]))
        if head is not None:
            return head
    for call in reversed(earlier):
        if call.call_id.startswith(_CALL_PREFIX):
            head = await heads.head_of_call(call.call_id)
            if head is not None:
                return head
    return await heads.head_of_fingerprint(fingerprint(request.messages[: last + 1]))


def _checked(identifier: str | None) -> str | None:
    if identifier is None:
        return None
    if not _ID.fullmatch(identifier):
        raise RequestError(
            "a trajectory or task id has 1 to 128 characters out of A-Z a-z 0-9 _ . : -",
            param="trajectory_id",
        )
    return identifier

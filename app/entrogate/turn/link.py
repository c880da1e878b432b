"""Which trajectory a request belongs to, without asking anything of the client.

Order: the ``x-entrogate-trajectory-id`` header or ``metadata.trajectory_id``; tool-call ids that we
minted; a fingerprint of the message history; else a new trajectory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from entrogate.access import belongs, qualified, unqualified
from entrogate.errors import RequestError, StoreError
from entrogate.turn.ids import mint
from entrogate.turn.offloaded import large_history, worked_out
from entrogate.types import ToolResult, TurnHead
from entrogate.wire.history import CallHistory, fingerprint, last_assistant
from entrogate.wire.minted import is_minted
from entrogate.wire.request import ChatRequest

TRAJECTORY_HEADER = "x-entrogate-trajectory-id"
TASK_HEADER = "x-entrogate-task-id"
_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")


class Heads(Protocol):
    """What linkage asks of the store."""

    async def heads_of_calls(self, call_ids: Sequence[str]) -> list[TurnHead]:
        """The turns that made the calls, in the order of the ids; unknown ids are left out."""
        ...

    async def head_of_fingerprint(self, fingerprint: bytes) -> TurnHead | None:
        """The latest turn whose conversation has this fingerprint, None where there is none."""
        ...

    async def head_of_trajectory(self, trajectory_id: str) -> TurnHead | None:
        """The latest turn of a trajectory that did not fail, None where there is none."""
        ...

    async def is_erased(self, trajectory_id: str) -> bool:
        """Whether a trajectory of this id was erased, so that its name is not taken up again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Where a turn attaches: its trajectory, and the turn it follows if there is one.

    ``fault``: the store could not be asked, so there may be one; the request is answered anyway.
    """

    trajectory_id: str
    task_id: str | None
    parent: TurnHead | None
    fault: StoreError | None = None


async def link(
    heads: Heads,
    request: ChatRequest,
    headers: Mapping[str, str],
    earlier: CallHistory,
    *,
    follows: TurnHead | None = None,
    tenant: str = "",
) -> Link:
    """Find the trajectory and the parent turn of ``request``; ``follows`` is the one it names.

    Store failures are not raised; they are returned as `Link.fault`.

    Raises RequestError for an id that is not one to be stored or shown.
    """
    metadata = request.metadata or {}
    named = headers.get(TRAJECTORY_HEADER) or metadata.get("trajectory_id")
    if named is not None:
        named = qualified(tenant, _checked(unqualified(tenant, str(named))))
    task_id = headers.get(TASK_HEADER) or metadata.get("task_id")
    if task_id is not None:
        task_id = _checked(str(task_id))
    fault = None
    try:
        parent = follows or await _parent_by_history(heads, request, earlier, tenant)
        if named is not None and (parent is None or parent.trajectory_id != named):
            head = await heads.head_of_trajectory(named)
            if head is None and await heads.is_erased(named):
                named = None  # it goes on where its history leads, else anew
            else:
                parent = head
    except StoreError as error:
        parent, fault = None, error
    trajectory_id = named or (parent and parent.trajectory_id) or qualified(tenant, mint("traj"))
    return Link(trajectory_id=trajectory_id, task_id=task_id, parent=parent, fault=fault)


def unlinked(tenant: str) -> Link:
    """Of a turn that is not recorded: the id of its trajectory is told to nobody."""
    return Link(trajectory_id=qualified(tenant, mint("traj")), task_id=None, parent=None)


def new_results(parent: TurnHead | None, earlier: CallHistory) -> tuple[ToolResult, ...]:
    """The results that this request brings for calls of ours: those of the last calling turn."""
    if parent is None or not earlier:
        return ()
    last = earlier.calls[-1].turn
    return tuple(
        ToolResult(call_id=call.call_id, content=call.result)
        for call in earlier
        if call.turn == last and call.result is not None and is_minted(call.call_id)
    )


async def _parent_by_history(
    heads: Heads, request: ChatRequest, earlier: CallHistory, tenant: str
) -> TurnHead | None:
    """The turn that wrote the last assistant message: by its call ids, else by what was said."""
    last = last_assistant(request.messages)
    if last is None:
        return None
    said = await worked_out(
        lambda messages: fingerprint(messages, tenant),
        request.messages[: last + 1],
        large=large_history(request.size_bytes),
    )
    if not earlier or earlier.calls[-1].turn != last:
        head = await heads.head_of_fingerprint(said)
        if head is not None:
            return head
    for head in await heads.heads_of_calls(earlier.minted_ids()):
        if belongs(head.trajectory_id, tenant):
            return head
    return await heads.head_of_fingerprint(said)


def _checked(identifier: str) -> str:
    if not _ID.fullmatch(identifier):
        raise RequestError(
            "a trajectory or task id has 1 to 128 characters out of A-Z a-z 0-9 _ . : -",
            param="trajectory_id",
        )
    return identifier

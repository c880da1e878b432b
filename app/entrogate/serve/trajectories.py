"""``/v1/feedback`` and ``/v1/trajectories``: what was recorded, and how it turned out."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from entrogate.access import qualified
from entrogate.errors import RequestError
from entrogate.serve.access import Caller, caller_of
from entrogate.serve.gateway import Gateway
from entrogate.serve.json_body import JsonBody
from entrogate.store import TrajectoryFilter
from entrogate.store.read.rows import Trajectory
from entrogate.types import Action, Mode
from entrogate.wire.answer import chat_id
from entrogate.wire.body import to_json

router = APIRouter(prefix="/v1")


class FeedbackBody(JsonBody):
    """An outcome: names one target, and says a score or an answer with its gold."""

    trajectory_id: str | None = None
    response_id: str | None = None
    tool_call_id: str | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    answer: str | None = None
    gold: str | list[str] | None = None
    comment: str | None = Field(default=None, max_length=10_000)


@router.post("/feedback")
async def feedback(body: FeedbackBody, request: Request) -> dict[str, Any]:
    """Record the outcome of a trajectory; answers with the rewards computed from it."""
    try:
        given = body.model_dump()
        if body.trajectory_id is not None:
            sees = caller_of(request).sees or ""
            given["trajectory_id"] = qualified(sees, body.trajectory_id)
        if body.response_id is not None:
            given["response_id"] = chat_id(body.response_id)
        rewards = await _gateway(request).store.add_feedback(
            **given, tenant=caller_of(request).sees, key_id=caller_of(request).key_id
        )
    except ValueError as error:
        raise RequestError(str(error)) from None
    gateway = _gateway(request)
    gateway.metrics.record_feedback()
    gateway.metrics.shadows.record_scores(rewards.pop("shadows"))
    gateway.grading.queue(rewards["trajectory_id"])
    return rewards


@router.get("/trajectories", response_model=dict[str, Any])
async def trajectories(
    request: Request,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: str | None = None,
    tenant: str | None = None,
    task_id: str | None = None,
    model: str | None = None,
    mode: Mode | None = None,
    has_outcome: bool | None = None,
    complete: bool | None = None,
    since: float | None = None,
    until: float | None = None,
    weight_version: str | None = None,
    tool: str | None = None,
    decision: Action | None = None,
) -> Response:
    """A page of trajectories, newest first; ``next_cursor`` leads to the next one."""
    try:
        page = await _gateway(request).store.list_trajectories(
            TrajectoryFilter(
                tenant=_tenant(caller_of(request), tenant),
                task_id=task_id,
                model=model,
                mode=mode,
                has_outcome=has_outcome,
                complete=complete,
                since=since,
                until=until,
                weight_version=weight_version,
                tool=tool,
                decision=decision,
            ),
            limit=limit,
            cursor=cursor,
        )
    except ValueError as error:
        raise RequestError(str(error)) from None
    listed = {"object": "list", "data": page.items, "next_cursor": page.next_cursor}
    return Response(await asyncio.to_thread(to_json, listed), media_type="application/json")


@router.get("/trajectories/{trajectory_id}", response_model=dict[str, Any])
async def trajectory(trajectory_id: str, request: Request, tokens: bool = False) -> Response:
    """Everything recorded of one trajectory; ``tokens=true`` adds the arrays."""
    caller = caller_of(request)
    found = await _gateway(request).store.get_trajectory(
        qualified(caller.sees or "", trajectory_id), tokens=tokens, tenant=caller.sees
    )
    body = await asyncio.to_thread(_written, found)
    return Response(body, media_type="application/json")


def _written(found: Trajectory) -> bytes:
    """A trajectory as JSON, turn by turn: a long one must not keep the others waiting."""
    turns = b",".join(to_json(turn) for turn in found.turns)
    names = (field.name for field in fields(found) if field.name != "turns")
    rest = to_json({name: getattr(found, name) for name in names})
    return rest[:-1] + b',"turns":[' + turns + b"]}"


def _tenant(caller: Caller, wished: str | None) -> str | None:
    """Whose trajectories to list. Raises RequestError for a wish that is not the caller's."""
    if caller.sees is None:
        return wished
    if wished not in (None, caller.sees):
        raise RequestError(
            f"this API key sees the trajectories of tenant {caller.sees!r} only",
            status=403,
            code="other_tenant",
            param="tenant",
        )
    return caller.sees


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway

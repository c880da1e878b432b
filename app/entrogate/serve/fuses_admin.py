"""``/admin/fuses``: how the fuses stand, and arming them. For this machine, and admins' keys."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from entrogate.serve.access import caller_of
from entrogate.serve.admin import from_this_machine
from entrogate.serve.fuses import Fuses, Standing

fuse_routes = APIRouter(prefix="/admin/fuses", dependencies=[Depends(from_this_machine)])


@fuse_routes.get("")
async def fuses(request: Request) -> dict[str, Any]:
    """The fuse of each tool that a policy in use audits."""
    found = _fuses(request)
    await found.refresh()
    return {"object": "list", "data": [_described(each) for each in found.standings]}


@fuse_routes.post("/{tool:path}/arm")
async def arm(
    tool: str,
    request: Request,
    policy_version: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """Arm the fuses of a tool: under one policy version, or under all in use. Audits from before
    count no longer."""
    caller = caller_of(request)
    armed = await _fuses(request).arm(
        tool, policy_version, actor=caller.actor, tenant=caller.tenant
    )
    return {"object": "list", "data": [_described(each) for each in armed]}


def _described(standing: Standing) -> dict[str, Any]:
    fuse, audit = standing.fuse, standing.audit
    return {
        "tool": fuse.tool,
        "policy": standing.policy.name,
        "policy_version": fuse.policy_version,
        "state": fuse.state.value,
        "audits": fuse.n,
        "waiting": standing.waiting,
        "losses": fuse.losses,
        "loss_rate": standing.estimate,
        "lower": fuse.lower,
        "upper": fuse.upper,
        "share": audit.share,
        "max_loss": audit.max_loss,
        "delta": audit.delta,
        "armed_at": fuse.armed_at,
        "changed_at": fuse.changed_at,
    }


def _fuses(request: Request) -> Fuses:
    found: Fuses = request.app.state.gateway.fuses
    return found

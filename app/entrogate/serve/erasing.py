"""Erasing trajectories, and the audit of who did what: ``DELETE /v1/…`` and ``/v1/audit``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from entrogate.access import check_tenant, qualified
from entrogate.errors import RequestError, UnknownRecord
from entrogate.serve.access import Caller, caller_of
from entrogate.serve.gateway import Gateway
from entrogate.store.admin.audit import AuditFilter
from entrogate.store.admin.erasure import ToErase

router = APIRouter(prefix="/v1")
_Moment = Annotated[float | None, Query(allow_inf_nan=False)]  # seconds since the epoch
DEFAULT_TENANT = "-"
"""The default tenant in a path, where its name would be empty."""


@router.delete("/trajectories/{trajectory_id}")
async def erase_trajectory(
    trajectory_id: str, request: Request, dry_run: bool = False
) -> dict[str, Any]:
    """Erase one trajectory: turns, tokens, results, feedback. ``dry_run`` counts only."""
    chosen = trajectory_of(caller_of(request), trajectory_id)
    return await _erase(request, chosen, dry_run=dry_run)


@router.delete("/tasks/{task_id}")
async def erase_task(
    task_id: str, request: Request, tenant: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Erase the trajectories of a task, of one tenant: the key's, or the one that is named."""
    chosen = ToErase(task_id=task_id, tenant=_own(caller_of(request), tenant))
    return await _erase(request, chosen, dry_run=dry_run)


@router.delete("/tenants/{tenant}")
async def erase_tenant(tenant: str, request: Request, dry_run: bool = False) -> dict[str, Any]:
    """Erase all trajectories of a tenant; ``-`` is the default one. Its keys stay."""
    named, caller = "" if tenant == DEFAULT_TENANT else tenant, caller_of(request)
    if caller.sees not in (None, named):
        raise UnknownRecord(f"no trajectory of tenant {tenant!r} is stored")
    return await _erase(request, ToErase(tenant=_own(caller, named)), dry_run=dry_run)


@router.get("/audit")
async def audit(
    request: Request,
    *,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: int | None = None,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    tenant: str | None = None,
    since: _Moment = None,
    until: _Moment = None,
) -> dict[str, Any]:
    """A page of what was done and by whom, the latest first; ``next_before`` leads on."""
    caller = caller_of(request)
    wanted = AuditFilter(
        actor=actor,
        action=action,
        target=target,
        tenant=tenant if caller.sees is None else _own(caller, tenant),
        since=since,
        until=until,
    )
    page = await _gateway(request).store.admin.audit(wanted, limit=limit, before=before)
    data = [asdict(entry) for entry in page.entries]
    return {"object": "list", "data": data, "next_before": page.next_before}


def trajectory_of(caller: Caller, named: str) -> ToErase:
    """The trajectory that ``caller`` names so. Raises UnknownRecord for another tenant's."""
    chosen = ToErase.trajectory(qualified(caller.sees or "", named))
    if caller.sees is not None and chosen.tenant != caller.sees:
        raise UnknownRecord(f"no trajectory {named!r} is stored")
    return chosen


async def _erase(request: Request, chosen: ToErase, *, dry_run: bool) -> dict[str, Any]:
    admin = _gateway(request).store.admin
    if dry_run:
        done = await admin.count(chosen)
    else:
        done = await admin.erase(chosen, actor=caller_of(request).actor)
    return {
        "object": f"{chosen.kind}.erased",
        "id": chosen.name,
        "tenant": chosen.tenant,
        "deleted": not dry_run,
        "trajectories": done.trajectories,
        "turns": done.turns,
    }


def _own(caller: Caller, wished: str | None) -> str:
    """Whose records: the caller's own unless it may name another. Raises RequestError."""
    own = caller.tenant if caller.sees is None else caller.sees
    if wished is None or wished == own:
        return own
    if caller.sees is not None:
        raise RequestError(
            f"this API key is for the records of tenant {caller.sees!r} only",
            status=403,
            code="other_tenant",
            param="tenant",
        )
    try:
        return check_tenant(wished)
    except ValueError as error:
        raise RequestError(str(error), param="tenant") from None


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway

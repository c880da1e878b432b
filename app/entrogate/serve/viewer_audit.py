"""``/ui/audit``, and the button that erases a trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from entrogate.errors import UnknownRecord
from entrogate.serve.access import caller_of, session_of
from entrogate.serve.erasing import trajectory_of
from entrogate.serve.gateway import Gateway
from entrogate.store.admin.audit import Act, AuditFilter, Entry
from entrogate.ui.pages import HEADERS, page

PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """An entry as a page shows it, its detail as text."""

    entry: Entry
    detail: str


async def audit(request: Request) -> Response:
    """What was done and by whom, the latest first; what is wanted of it is in the URL."""
    caller = caller_of(request)
    asked = {name: value for name, value in request.query_params.items() if value}
    before = asked.pop("before", "")
    unknown = asked.keys() - {"actor", "action", "target", "tenant"}
    if unknown or not (before == "" or (before.isdecimal() and len(before) < 19)):
        problem = f"{', '.join(sorted(unknown)) or 'before'}: nothing to filter by"
        return _html("problem.html", request, 400, problem=problem)
    if caller.sees is not None:
        asked["tenant"] = caller.sees
    found = await _gateway(request).store.admin.audit(
        _filter(asked), limit=PAGE, before=int(before) if before else None
    )
    rows = [AuditRow(entry=entry, detail=_detail_text(entry)) for entry in found.entries]
    following = found.next_before
    return _html(
        "audit.html",
        request,
        rows=rows,
        wanted={name: asked.get(name) for name in ("actor", "action", "target", "tenant")},
        one_tenant=caller.sees is not None,
        actions=["", *(act.value for act in Act)],
        first_href=f"/ui/audit?{urlencode(asked)}" if before else None,
        next_href=f"/ui/audit?{urlencode(asked | {'before': following})}" if following else None,
    )


async def erase(request: Request) -> Response:
    """Erase the trajectory of the page that the form stood on, if its box was ticked."""
    body = await request.body()
    fields = parse_qs(body.decode(errors="replace"))
    named: str = request.path_params["trajectory_id"]
    if fields.get("confirm") != ["yes"]:
        problem = "nothing was erased: tick the box to confirm"
        return _html("problem.html", request, 400, problem=problem)
    caller = caller_of(request)
    try:
        chosen = trajectory_of(caller, named)
        await _gateway(request).store.admin.erase(chosen, actor=caller.actor)
    except UnknownRecord as error:
        return _html("problem.html", request, 404, problem=str(error))
    return RedirectResponse("/ui/trajectories", 303)


def _detail_text(entry: Entry) -> str:
    return ", ".join(
        f"{name}: {orjson.dumps(value).decode()}" for name, value in entry.detail.items()
    )


def _filter(asked: Mapping[str, str]) -> AuditFilter:
    return AuditFilter(
        actor=asked.get("actor"),
        action=asked.get("action"),
        target=asked.get("target"),
        tenant=asked.get("tenant"),
    )


def _html(template: str, request: Request, status: int = 200, /, **values: Any) -> Response:
    signed_in = session_of(request.headers) is not None
    html = page(template, here=request.url.path, signed_in=signed_in, **values)
    return HTMLResponse(html, status, headers=HEADERS)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway

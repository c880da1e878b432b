"""``/ui``: pages over what was recorded. Reads only; the policy preview changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from entrogate.access import Scope, qualified
from entrogate.errors import RequestError, UnknownRecord
from entrogate.serve.access import SESSION_COOKIE, caller_of, session_of
from entrogate.serve.gateway import Gateway
from entrogate.serve.keyring import Keyring, Refused
from entrogate.serve.routing import Route
from entrogate.serve.token_texts import TokenTexts
from entrogate.serve.viewer_audit import audit, erase
from entrogate.serve.viewer_policy import policy
from entrogate.store import TrajectoryFilter
from entrogate.store.read.rows import Call, Trajectory, Turn
from entrogate.store.read.slices import SlicedTokens, TokenSlice
from entrogate.ui.charts import bands
from entrogate.ui.fuses import fuse_lines
from entrogate.ui.overview import sections
from entrogate.ui.pages import HEADERS, page
from entrogate.ui.paging import Part, pages_of
from entrogate.ui.runs import LEVELS, Run, runs_of

PAGE = 50
WINDOW = 2_000  # trajectories of the overview
_STATIC = {
    "viewer.css": "text/css",
    "viewer.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_UNSTORED = {"cache-control": "no-store"}
_YES = {"yes": True, "no": False, "": None}


async def overview(request: Request) -> Response:
    """Figures over the latest trajectories."""
    found = await _gateway(request).store.overview(caller_of(request).sees, WINDOW)
    rows = found.trajectories
    return _html(
        "overview.html",
        request,
        window=len(rows),
        since=rows[-1].created_at if rows else None,
        sections=sections(found),
        fuses=fuse_lines([each.figures() for each in _gateway(request).fuses.standings]),
    )


async def trajectories(request: Request) -> Response:
    """A page of trajectories; what is wanted of them is in the URL."""
    asked = {name: value for name, value in request.query_params.items() if value}
    cursor = asked.pop("cursor", None)
    problem, items, next_cursor = None, [], None
    try:
        found = await _gateway(request).store.list_trajectories(
            _wanted(asked, caller_of(request).sees),
            limit=PAGE,
            cursor=cursor,
            oldest_first=_oldest_first(asked),
        )
    except ValueError as error:
        problem = str(error)
    else:
        items, next_cursor = found.items, found.next_cursor
    names = ("task_id", "model", "mode", "tool", "decision", "has_outcome", "complete", "sort")
    return _html(
        "trajectories.html",
        request,
        200 if problem is None else 400,
        items=items,
        problem=problem,
        wanted={name: asked.get(name) for name in names},
        first_href=f"/ui/trajectories?{urlencode(asked)}" if cursor else None,
        next_href=f"/ui/trajectories?{urlencode(asked | {'cursor': next_cursor})}"
        if next_cursor
        else None,
    )


async def trajectory(request: Request) -> Response:
    """One trajectory as a person would read it, a page at a time where it is long."""
    caller = caller_of(request)
    store = _gateway(request).store
    id_: str = request.path_params["trajectory_id"]
    try:
        found = await store.get_trajectory(qualified(caller.sees or "", id_), tenant=caller.sees)
    except UnknownRecord as error:
        return _html("problem.html", request, 404, problem=str(error))
    pages = await asyncio.to_thread(pages_of, [turn.n_tokens for turn in found.turns])
    asked = request.query_params.get("page", "1")
    number = int(asked) if asked.isdecimal() and len(asked) < 9 else 0
    if not 1 <= number <= len(pages):
        problem = f"page {asked[:20]!r}: this trajectory has the pages 1 to {len(pages)}"
        return _html("problem.html", request, 404, problem=problem)
    parts = pages[number - 1]
    tokens = await store.token_slices(
        [
            TokenSlice(turn_id=found.turns[at.position].id, start=at.start, stop=at.stop)
            for at in parts
        ]
    )
    ids = {token for each in tokens.values() for token in each.token_ids}
    shown = Shown(
        found=found,
        parts=parts,
        tokens=tokens,
        texts=await _texts(request).of(found.model, ids),
        number=number,
        pages=len(pages),
        signed_in=session_of(request.headers) is not None,
        may_erase=caller.may(Scope.ERASE),
    )
    html = await asyncio.to_thread(_trajectory_page, shown)
    return HTMLResponse(html, headers=HEADERS)


async def login(request: Request) -> Response:
    """A browser shows its API key once and gets a session, in a cookie that no script reads."""
    if request.method == "GET":
        return _html("login.html", request, problem=None)
    secret = (await _form(request)).get("key", "").strip()
    keyring: Keyring = request.app.state.keyring
    try:
        token, seconds = keyring.open_session(secret)
    except Refused as refused:
        return _html("login.html", request, refused.status, problem=str(refused))
    response = RedirectResponse("/ui", 303, headers=_UNSTORED)
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=seconds,
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
        path="/ui",
    )
    return response


async def logout(request: Request) -> Response:
    """End the browser's session, here and in the browser."""
    token = session_of(request.headers)
    if token is not None:
        keyring: Keyring = request.app.state.keyring
        keyring.close_session(token)
    response = RedirectResponse("/ui/login", 303, headers=_UNSTORED)
    response.delete_cookie(
        SESSION_COOKIE,
        path="/ui",
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )
    return response


def _is_encrypted(request: Request) -> bool:
    """Does the browser speak TLS, with us or with a proxy before us?"""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


async def static(request: Request) -> Response:
    """The style and the script."""
    name: str = request.path_params["name"]
    if name not in _STATIC:
        raise RequestError(f"no file {name!r}", status=404)
    content = (files("entrogate.ui") / "static" / name).read_bytes()
    headers = {**HEADERS, "cache-control": "max-age=300"}
    return Response(content, media_type=_STATIC[name], headers=headers)


async def root(request: Request) -> Response:  # noqa: ARG001
    """Who opens the bare address in a browser wants the pages."""
    return RedirectResponse("/ui", 307)


VIEWER = (
    Route("/", root),
    Route("/ui", overview),
    Route("/ui/trajectories", trajectories),
    Route("/ui/trajectories/{trajectory_id}", trajectory, methods=["GET"]),
    Route("/ui/trajectories/{trajectory_id}", erase, methods=["POST"]),
    Route("/ui/audit", audit),
    Route("/ui/policy", policy, methods=["GET", "POST"]),
    Route("/ui/login", login, methods=["GET", "POST"]),
    Route("/ui/logout", logout, methods=["POST"]),
    Route("/ui/static/{name}", static),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one page of a trajectory is made of."""

    found: Trajectory
    parts: Sequence[Part]
    tokens: Mapping[str, SlicedTokens]  # by the turn's id
    texts: Mapping[int, str] | None
    number: int  # of the page, from 1
    pages: int
    signed_in: bool
    may_erase: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCall:
    """A call as a page shows it."""

    call: Call
    result: str | None  # None: no turn brought one back
    features_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTurn:
    """A turn, or the part of it that stands on one page."""

    turn: Turn
    part: Part
    runs: Sequence[Run]
    calls: Sequence[ShownCall]


def _trajectory_page(shown: Shown) -> str:
    found, texts = shown.found, shown.texts or {}
    results = {each.call_id: each.content for turn in found.turns for each in turn.results}
    turns: list[ShownTurn] = []
    for part in shown.parts:
        turn = found.turns[part.position]
        runs = runs_of(turn.spans, shown.tokens[turn.id], texts)
        calls = [_shown_call(call, results.get(call.id)) for call in turn.calls]
        turns.append(ShownTurn(turn=turn, part=part, runs=runs, calls=calls))
    segments = [
        (str(each.turn.turn_index), mean.lower, mean.upper)
        for each in turns
        if each.turn.segment is not None
        and (mean := each.turn.segment.mean).lower is not None
        and mean.upper is not None
    ]
    names = [f"below {LEVELS[0]:g}", *(f"{level:g}" for level in LEVELS)]
    return page(
        "trajectory.html",
        may_erase=shown.may_erase,
        here=None,
        signed_in=shown.signed_in,
        t=found,
        turns=turns,
        number=shown.number,
        pages=shown.pages,
        chart=bands(segments, label="Mean entropy of each reasoning segment, by turn"),
        legend=list(enumerate(names)),
        texts_known=shown.texts is not None,
    )


def _shown_call(call: Call, result: str | None) -> ShownCall:
    features = orjson.dumps(call.features, option=orjson.OPT_INDENT_2)
    return ShownCall(call=call, result=result, features_text=features.decode())


def _oldest_first(asked: Mapping[str, str]) -> bool:
    """Raises ValueError for an order that there is not."""
    sort = asked.get("sort", "newest")
    if sort not in ("newest", "oldest"):
        raise ValueError(f"sort is {sort!r}; want newest or oldest")
    return sort == "oldest"


def _wanted(asked: Mapping[str, str], tenant: str | None) -> TrajectoryFilter:
    """Raises ValueError for a name or value that is none."""
    wanted: dict[str, Any] = {}
    for name, value in asked.items():
        if name in ("has_outcome", "complete"):
            if value not in _YES:
                raise ValueError(f"{name} is {value!r}; want yes or no")
            wanted[name] = _YES[value]
        elif name in ("task_id", "model", "mode", "tool", "decision"):
            wanted[name] = value
        elif name != "sort":
            raise ValueError(f"{name!r} is nothing to filter by")
    return TrajectoryFilter(tenant=tenant, **wanted)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form; `AccessControl` lets only those of our own pages come here."""
    body = await request.body()
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


def _html(template: str, request: Request, status: int = 200, /, **values: Any) -> Response:
    signed_in = session_of(request.headers) is not None and request.url.path != "/ui/login"
    html = page(template, here=request.url.path, signed_in=signed_in, **values)
    return HTMLResponse(html, status, headers=HEADERS)


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _texts(request: Request) -> TokenTexts:
    texts: TokenTexts = request.app.state.token_texts
    return texts

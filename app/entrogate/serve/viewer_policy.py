"""``/ui/policy``: compares the policies in force, and previews what another would decide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from entrogate.errors import ConfigError
from entrogate.gate.policy import Policy, parse_policy
from entrogate.serve.access import caller_of, session_of
from entrogate.serve.gateway import Gateway
from entrogate.store.read.replay import ReplayReport, replay_turns
from entrogate.types import Action
from entrogate.ui.arms import HEAD, by_policy, figures_of
from entrogate.ui.pages import HEADERS, page

PREVIEWED = 5_000  # turns with calls that a preview decides again
WINDOW = 2_000  # trajectories of the figures
_SHOWN = (Action.ALLOW, Action.SUPPRESS, Action.REPLAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one policy would decide for the calls of a preview."""

    label: str
    decisions: Sequence[int]  # calls allowed, suppressed, replayed
    changed: int  # decisions that differ from the stored ones


async def policy(request: Request) -> Response:
    """The policies in force and their figures; for a posted policy, what it would have decided
    for the latest calls, compared with the policies in force."""
    gateway: Gateway = request.app.state.gateway
    if request.method == "GET":
        main = gateway.policies.main.model_dump(mode="json", exclude_unset=True)
        text = json.dumps(main, indent=2, ensure_ascii=False)
        return await _shown(request, text=text)
    text = await _posted(request)
    try:
        parsed = await asyncio.to_thread(parse_policy, text, "policy", can_force=True)
    except ConfigError as error:
        return await _shown(request, 400, text=text, problem=str(error))
    turns = await gateway.store.latest_decisions(caller_of(request).sees, PREVIEWED + 1)
    asked = [("previewed", parsed), *((arm.value, p) for arm, p in gateway.policies.arms.items())]

    def replayed() -> list[tuple[str, ReplayReport]]:
        return [(_label(*each), replay_turns(turns[:PREVIEWED], each[1])) for each in asked]

    reports = await asyncio.to_thread(replayed)
    report = reports[0][1]
    return await _shown(
        request,
        text=text,
        report=report.as_json() | {"policy": report.policy},
        compared=[_compared(label, each) for label, each in reports],
        cut=len(turns) > PREVIEWED,
    )


async def _shown(request: Request, status: int = 200, /, **values: Any) -> Response:
    gateway: Gateway = request.app.state.gateway
    policies = gateway.policies
    rows = await gateway.store.policies.figures(caller_of(request).sees, WINDOW)
    known = {each.version: each for each in by_policy(rows, {})}
    arms = [
        (
            _label(arm.value, each),
            f"{policies.arms.share_of(arm):.0%}",
            policies.mode_of(each).value,
            *(known.get(each.version) or figures_of("", "", ())).row()[1:],
        )
        for arm, each in policies.arms.items()
    ]
    html = page(
        "policy.html",
        here=request.url.path,
        signed_in=session_of(request.headers) is not None,
        arms=arms,
        arms_head=(HEAD[0], "Share", "Mode", *HEAD[1:]),
        policy_problem=policies.problem,
        window=len(rows),
        **{"problem": None, "report": None, "compared": (), "cut": False} | values,
    )
    return HTMLResponse(html, status, headers=HEADERS)


def _label(place: str, policy: Policy) -> str:
    return f"{place}: {policy.name} {policy.version}"


def _compared(label: str, report: ReplayReport) -> Compared:
    decisions = [report.replayed[action.value] for action in _SHOWN]
    return Compared(label=label, decisions=decisions, changed=report.mismatches)


async def _posted(request: Request) -> str:
    body = await request.body()
    return parse_qs(body.decode(errors="replace"), keep_blank_values=True).get("policy", [""])[-1]

"""``/admin/policies``: show, reload, put on trial, promote. For this machine, and admins' keys."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from entrogate.errors import ConfigError, RequestError
from entrogate.gate.arms import Arm
from entrogate.gate.bounded_yaml import MAX_CHARACTERS
from entrogate.gate.policy import Policy
from entrogate.serve.access import caller_of
from entrogate.serve.admin import from_this_machine
from entrogate.serve.gateway import Gateway
from entrogate.serve.json_body import JsonBody
from entrogate.serve.policies import Policies

policy_routes = APIRouter(prefix="/admin/policies", dependencies=[Depends(from_this_machine)])

Share = Annotated[float, Field(ge=0, le=1)]


class PolicyBody(JsonBody):
    """One of a policy as YAML (or JSON) and the version of one that is kept."""

    policy: Annotated[str | None, Field(max_length=MAX_CHARACTERS)] = None
    version: Annotated[str | None, Field(max_length=64)] = None


class TrialBody(PolicyBody):
    """A policy and its share of the trajectories that begin; of both at least one."""

    share: Share | None = None


@policy_routes.get("")
async def in_force(request: Request) -> dict[str, Any]:
    """The policies in force, the main one first, and why they are not those of the files."""
    policies = _policies(request)
    arms = [_described(policies, arm, policy) for arm, policy in policies.arms.items()]
    return {"object": "list", "data": arms, "problem": policies.problem}


@policy_routes.get("/versions")
async def versions(request: Request) -> dict[str, Any]:
    """Every version that was ever in force on this store, the latest first."""
    gateway: Gateway = request.app.state.gateway
    kept = await gateway.store.policies.versions()
    return {"object": "list", "data": [asdict(each) for each in kept]}


@policy_routes.get("/versions/{version}")
async def version(version: str, request: Request) -> dict[str, Any]:
    """One of them with its text."""
    policy = await _kept(_policies(request), version)
    return {"version": version, "name": policy.name, "policy": _content(policy)}


@policy_routes.post("/reload")
async def reload(request: Request) -> dict[str, Any]:
    """Go back to what the files say now, whatever was ordered before."""
    await _policies(request).reload(actor=caller_of(request).actor)
    return await in_force(request)


@policy_routes.put("/main")
async def put_main(body: PolicyBody, request: Request) -> dict[str, Any]:
    """Put a policy in force for all, or for all that the trial leaves."""
    policies = _policies(request)
    policy = await _meant(policies, body)
    if policy is None:
        raise RequestError("give one of `policy` (its text) and `version`", param="policy")
    await policies.order(Arm.MAIN, policy, actor=caller_of(request).actor)
    return await in_force(request)


@policy_routes.put("/trial")
async def put_trial(body: TrialBody, request: Request) -> dict[str, Any]:
    """Put a policy on trial for a share, or give the one that is on trial another share."""
    policies, actor = _policies(request), caller_of(request).actor
    policy = await _meant(policies, body)
    if body.share is None:
        raise RequestError("give `share`: how many of new trajectories, 0 to 1", param="share")
    if policy is None:
        await policies.set_share(body.share, actor=actor)
    else:
        await policies.order(Arm.TRIAL, policy, body.share, actor=actor)
    return await in_force(request)


@policy_routes.delete("/trial")
async def withdraw(request: Request) -> dict[str, Any]:
    """End the trial; its trajectories go on under the main policy."""
    await _policies(request).withdraw(actor=caller_of(request).actor)
    return await in_force(request)


@policy_routes.post("/trial/promote")
async def promote(request: Request) -> dict[str, Any]:
    """Make the policy on trial the main one."""
    await _policies(request).promote(actor=caller_of(request).actor)
    return await in_force(request)


async def _meant(policies: Policies, body: PolicyBody) -> Policy | None:
    """The policy that a body names; None where it names none. Raises RequestError."""
    if body.policy is None:
        return None if body.version is None else await _kept(policies, body.version)
    if body.version is not None:
        raise RequestError("give one of `policy` and `version`", param="version")
    try:
        return await asyncio.to_thread(policies.parse, body.policy, "policy")
    except ConfigError as error:
        raise RequestError(str(error), code="policy_invalid", param="policy") from None


async def _kept(policies: Policies, version: str) -> Policy:
    try:
        policy = await policies.find(version)
    except ConfigError as error:
        raise RequestError(str(error), code="policy_invalid", param="version") from None
    if policy is None:
        raise RequestError(
            f"no policy version {version!r} is stored; GET /admin/policies/versions lists them",
            status=404,
            code="unknown_version",
            param="version",
        )
    return policy


def _described(policies: Policies, arm: Arm, policy: Policy) -> dict[str, Any]:
    return {
        "arm": arm,
        "name": policy.name,
        "version": policy.version,
        "mode": policies.mode_of(policy),
        "share": policies.arms.share_of(arm),
        "from": "order" if policies.is_ordered(arm) else "settings",
        "policy": _content(policy),
    }


def _content(policy: Policy) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude_unset=True)


def _policies(request: Request) -> Policies:
    gateway: Gateway = request.app.state.gateway
    return gateway.policies

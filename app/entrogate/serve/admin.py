"""``/admin/weights``: publish, share out, roll back. For this machine, and for admins' keys."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from entrogate.errors import RequestError
from entrogate.serve.access import caller_of
from entrogate.serve.gateway import Gateway
from entrogate.serve.json_body import JsonBody
from entrogate.serve.weights_publisher import WeightsPublisher
from entrogate.store.admin.audit import Act, Deed
from entrogate.types import BASE_WEIGHTS, PublishedWeights, WeightsState


def from_this_machine(request: Request) -> None:
    """RequestError (403) for a client that is not on a loopback address and has no admin's key."""
    if caller_of(request).is_admin:
        return
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        local = False
    else:
        mapped = getattr(address, "ipv4_mapped", None)
        local = (mapped or address).is_loopback
    if not local:
        raise RequestError(
            "the routes under /admin answer only on the machine that the gateway runs on",
            status=403,
            code="admin_is_local",
        )


admin_routes = APIRouter(prefix="/admin", dependencies=[Depends(from_this_machine)])


class PublishBody(JsonBody):
    """A LoRA folder, as the gateway and vLLM both see it."""

    folder: str
    share: Annotated[float | None, Field(ge=0, le=1)] = None
    name: Annotated[str | None, Field(min_length=1, max_length=200)] = None


class ShareBody(JsonBody):
    """A share of new trajectories; 1 promotes."""

    share: Annotated[float, Field(ge=0, le=1)]


@admin_routes.get("/weights")
async def weights(request: Request) -> dict[str, Any]:
    """The base model and what is published over it, the oldest first."""
    publisher = _publisher(request)
    routes, running = publisher.weights.routes, publisher.weights.running
    base = {
        "version": BASE_WEIGHTS,
        "share": routes.share_of(BASE_WEIGHTS),
        "stable": routes.stable.version == BASE_WEIGHTS,
        "state": "serving",
        "in_flight": running[BASE_WEIGHTS],
    }
    published = [_described(publisher, each) for each in publisher.weights.published]
    return {"object": "list", "data": [base, *published]}


@admin_routes.post("/weights")
async def publish(body: PublishBody, request: Request) -> dict[str, Any]:
    """Load a LoRA into vLLM and route a share to it; answers when it is served."""
    publisher = _publisher(request)
    published = await publisher.publish(body.folder, share=body.share, name=body.name)
    detail = {"model": published.model, "name": published.name, "share": body.share}
    await _note(request, Act.PUBLISH, published.version, detail)
    return _described(publisher, published)


@admin_routes.post("/weights/{version}/share")
async def share(version: str, body: ShareBody, request: Request) -> dict[str, Any]:
    """Give a published version another share."""
    publisher = _publisher(request)
    changed = await publisher.set_share(version, body.share)
    await _note(request, Act.SHARE, version, {"model": changed.model, "share": body.share})
    return _described(publisher, changed)


@admin_routes.delete("/weights/{version}")
async def roll_back(version: str, request: Request) -> dict[str, Any]:
    """Out of routing at once; unloaded after its last turn."""
    publisher = _publisher(request)
    withdrawn = await publisher.roll_back(version)
    await _note(request, Act.ROLL_BACK, version, {"model": withdrawn.model})
    return _described(publisher, withdrawn)


def _described(publisher: WeightsPublisher, each: PublishedWeights) -> dict[str, Any]:
    in_use = publisher.weights
    problem = publisher.problems.get(each.version)
    state = each.state.value
    if each.state is WeightsState.SERVING and each.version not in in_use.ready:
        state = "loading" if problem is None else "unavailable"
    return {
        "version": each.version,
        "name": each.name,
        "share": in_use.routes.share_of(each.version),
        "stable": in_use.routes.stable.version == each.version,
        "state": state,
        "problem": problem,
        "in_flight": in_use.running[each.version],
        "folder": each.folder,
        "rank": each.rank,
        "published_at": each.published_at,
    }


async def _note(request: Request, action: Act, target: str, detail: dict[str, Any]) -> None:
    """Add to the audit what the caller has done."""
    caller = caller_of(request)
    deed = Deed(
        actor=caller.actor, action=action, target=target, tenant=caller.tenant, detail=detail
    )
    gateway: Gateway = request.app.state.gateway
    await gateway.store.admin.note(deed)


def _publisher(request: Request) -> WeightsPublisher:
    publisher: WeightsPublisher = request.app.state.publisher
    return publisher

"""``/health``, ``/ready`` and ``/metrics``: for balancers, operators and Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from entrogate import __version__
from entrogate.errors import EntrogateError
from entrogate.serve.gateway import Gateway
from entrogate.upstream.managed import ManagedVllm

status_routes = APIRouter()
_CHECK_SECONDS = 5.0


@status_routes.get("/health")
async def health() -> dict[str, str]:
    """The process is alive; says nothing of what it depends on."""
    return {"status": "ok", "version": __version__}


@status_routes.get("/ready", responses={503: {"description": "What is missing"}})
async def ready(request: Request) -> Response:
    """Can turns be served? 200 with what is active, or 503 with what is missing."""
    gateway: Gateway = request.app.state.gateway
    managed: ManagedVllm | None = request.app.state.managed
    report: dict[str, Any] = {
        "policy": {"name": gateway.policy.name, "version": gateway.policy.version},
        "mode": gateway.mode,
        "store": {"queue": gateway.store.queue_depth, "deferred": gateway.store.deferred},
    }
    if managed is not None:
        report["managed"] = managed.state
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            async with gateway.client.request("GET", "/health") as response:
                alive = response.status == 200
            found = await gateway.capabilities() if alive else None
    except (EntrogateError, TimeoutError) as error:
        report["upstream"] = {"ready": False, "reason": str(error) or "no answer in time"}
        return JSONResponse({"status": "unavailable", **report}, 503)
    if found is None:
        report["upstream"] = {"ready": False, "reason": f"/health answered {response.status}"}
        return JSONResponse({"status": "unavailable", **report}, 503)
    report["upstream"] = {
        "ready": True,
        "model": found.model,
        "estimator": found.estimator,
        "top_logprobs": found.top_logprobs,
        "gate_points": found.gate_points,
        "problems": found.problems(),
    }
    return JSONResponse({"status": "ready", **report})


@status_routes.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    gateway: Gateway = request.app.state.gateway
    body, content_type = gateway.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})

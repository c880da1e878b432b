"""``/health``, ``/ready`` and ``/metrics``: for balancers, operators and Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from entrogate import __version__
from entrogate.errors import EntrogateError
from entrogate.serve.access import caller_of
from entrogate.serve.drain import Drain
from entrogate.serve.gateway import Gateway
from entrogate.serve.policies import Policies
from entrogate.upstream.handshake import ask_identity
from entrogate.upstream.managed import ManagedVllm

status_routes = APIRouter()
_CHECK_SECONDS = 5.0
_NO_ROUTE = (404, 405, 501)
_UNREADY = {"status": "unavailable"}


@status_routes.get("/health")
async def health() -> dict[str, str]:
    """The process is alive; says nothing of what it depends on."""
    return {"status": "ok", "version": __version__}


@status_routes.get("/ready", responses={503: {"description": "What is missing"}})
async def ready(request: Request) -> Response:
    """Can turns be served? 200 or 503; with the scope `read`, or without any keys, also what is
    active and what is missing.

    However many ask, the model server is asked by one of them at a time.
    """
    drain: Drain = request.app.state.drain
    if drain.begun:
        status, report = 503, {"status": "stopping"}
    else:
        checks: Checks = request.app.state.checks
        status, report = await checks.report()
    if caller_of(request).is_stranger:
        report = {"status": report["status"]}
    return JSONResponse(report, status)


class Checks:
    """Looks whether turns can be served, once for all who ask at the same time."""

    def __init__(self, gateway: Gateway, managed: ManagedVllm | None) -> None:
        self._gateway = gateway
        self._managed = managed
        self._running: asyncio.Task[tuple[int, dict[str, Any]]] | None = None

    async def report(self) -> tuple[int, dict[str, Any]]:
        """The status of the answer, and all that there is to say."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._look(), name="ready")
        return await asyncio.shield(self._running)

    async def _look(self) -> tuple[int, dict[str, Any]]:
        gateway = self._gateway
        report: dict[str, Any] = {
            **_in_force(gateway.policies),
            "calibration": gateway.calibrations.states(),
            "store": {"queue": gateway.store.queue_depth, "deferred": gateway.store.deferred},
        }
        if self._managed is not None:
            report["managed"] = self._managed.state
            if self._managed.parsers is not None:
                report["managed_parsers"] = self._managed.parsers.described()
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                async with gateway.client.request("GET", "/health") as response:
                    alive = response.status == 200
                if response.status in _NO_ROUTE:  # no vLLM: it lists its models, then
                    await ask_identity(gateway.client)
                    alive = True
                found = await gateway.capabilities() if alive else None
        except (EntrogateError, TimeoutError) as error:
            report["upstream"] = {"ready": False, "reason": str(error) or "no answer in time"}
            return 503, _UNREADY | report
        if found is None:
            report["upstream"] = {"ready": False, "reason": f"/health answered {response.status}"}
            return 503, _UNREADY | report
        report["upstream"] = {
            "ready": True,
            "model": found.model,
            "estimator": found.estimator,
            "top_logprobs": found.top_logprobs,
            "gate_points": found.gate_points,
            "signals": found.signals,
            "problems": found.problems(),
        }
        return 200, {"status": "ready"} | report


def _in_force(policies: Policies) -> dict[str, Any]:
    """The policies in force, and why they are not those of the files."""
    main, trial = policies.main, policies.arms.trial
    found: dict[str, Any] = {
        "policy": {"name": main.name, "version": main.version},
        "mode": policies.mode_of(main),
    }
    if trial is not None:
        found["trial"] = {
            "name": trial.name,
            "version": trial.version,
            "mode": policies.mode_of(trial),
            "share": policies.arms.share,
        }
    if policies.problem is not None:
        found["policy_problem"] = policies.problem
    return found


@status_routes.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    gateway: Gateway = request.app.state.gateway
    body, content_type = gateway.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})

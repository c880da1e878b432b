"""Routes that cross unchanged: ``/v1/completions`` and ``/v1/models``."""

from __future__ import annotations

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from entrogate.errors import EntrogateError
from entrogate.serve.gateway import Gateway
from entrogate.serve.respond import WatchedResponse, read_body
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.client import UpstreamClient
from entrogate.wire.errors import error_event

_KEPT = ("content-type", "x-request-id")


async def forward(request: Request) -> Response:
    """Send the request on as it is and the answer back as it comes."""
    gateway: Gateway = request.app.state.gateway
    body = await read_body(request, gateway.settings.serve)
    headers = gateway.client.headers(request.headers)
    if "x-request-id" in request.headers:
        headers["x-request-id"] = request.headers["x-request-id"]
    if gateway.tracing is not None:
        gateway.tracing.inject(headers)
    route: str = request.scope["path"]  # not of `request.url`, which is made from the Host header
    async with AsyncExitStack() as unanswered:
        upstream = await unanswered.enter_async_context(
            gateway.client.request(request.method, route, body=body or None, headers=headers)
        )
        stack = unanswered.pop_all()

    async def work(send: Send) -> None:
        async with stack:
            with gateway.metrics.in_flight(route):
                await _copy(gateway.client, upstream, send)
        gateway.metrics.record_request(route, upstream.status)

    return WatchedResponse(work)


async def _copy(client: UpstreamClient, upstream: UpstreamAnswer, send: Send) -> None:
    headers = [
        (name.encode(), upstream.headers[name].encode("latin-1"))
        for name in _KEPT
        if name in upstream.headers
    ]
    start = {"type": "http.response.start", "status": upstream.status, "headers": headers}
    await send(start)
    try:
        with client.failures():
            async for data in upstream.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
    except EntrogateError as error:
        if upstream.content_type != "text/event-stream":
            raise
        await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Routes that cross to the model server unchanged, and back: nothing is gated or recorded."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from entrogate.errors import EntrogateError, RequestError, UpstreamError, UpstreamProtocol
from entrogate.serve.gateway import Gateway
from entrogate.serve.sending import WatchedResponse
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.wire.errors import error_body, error_event, is_error_body, upstream_error_body
from entrogate.wire.reserved import raw_without_ours

# Pattern and method of each; who may use it is said in `access.SCOPES`.
PASSED = (
    ("/v1/completions", "POST"),
    ("/v1/embeddings", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model_id:path}", "GET"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/version", "GET"),
)
_STREAM = "text/event-stream"
_LONGEST_ID = 128
Head = tuple[int, list[tuple[bytes, bytes]]]


async def forward(request: Request) -> Response:
    """The answer as it comes, to the request without engine arguments that only we may set.

    Raises RequestError for a path that would leave its route, or a body that is no JSON object.
    """
    gateway: Gateway = request.app.state.gateway
    route: str = request.scope["route"].path
    path = _path(request)
    body = await request.body()
    if request.method == "POST":
        body = raw_without_ours(body)
    headers = gateway.client.headers(request.headers)
    request_id = request.headers.get("x-request-id", "")
    if 0 < len(request_id) <= _LONGEST_ID and request_id.isascii():
        headers["x-request-id"] = request_id
    if gateway.tracing is not None:
        gateway.tracing.inject(headers)

    async def work(send: Send) -> None:
        with gateway.metrics.in_flight(route):
            async with gateway.client.request(
                request.method, path, body=body or None, headers=headers
            ) as answer:
                if answer.status == 200 and answer.content_type == _STREAM:
                    gateway.metrics.record_request(route, 200)
                    await _copy_events(gateway, answer, send)
                    return
                content = await _whole(answer, path)
                gateway.metrics.record_request(route, answer.status)
                if answer.status >= 500:
                    gateway.metrics.record_upstream_error("UpstreamStatus")
                await _send_whole(send, content, answer)

    return WatchedResponse(work)


def _path(request: Request) -> str:
    """The path for the model server: made from the decoded one, so that it means the same there."""
    path: str = request.scope["path"]  # not of `request.url`, which is made from the Host header
    if any(part in (".", "..") for part in path.split("/")):
        raise RequestError(f"there is no {path[:200]}", status=404, code="not_found")
    return quote(path, safe="/")


async def _whole(answer: UpstreamAnswer, path: str) -> bytes:
    """The body for the client: JSON as it is, and an error in the envelope."""
    if answer.status != 200:
        body = await answer.read_text()
        if is_error_body(body):
            return body
        if answer.status == 404:
            message = f"the model server has no {path}"
            return error_body(message, kind="not_found_error", code="not_found")
        return upstream_error_body(answer.status, body)
    kind = answer.content_type
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise UpstreamProtocol(f"the model server answered {path} with {kind[:80]}; want JSON")
    return await answer.read()


async def _send_whole(send: Send, body: bytes, answer: UpstreamAnswer) -> None:
    headers = [(b"content-type", b"application/json"), *_request_id(answer)]
    headers.append((b"content-length", str(len(body)).encode()))
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _copy_events(gateway: Gateway, answer: UpstreamAnswer, send: Send) -> None:
    kind = answer.headers["content-type"].encode("latin-1", "replace")
    headers = [(b"content-type", kind), *_request_id(answer)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async for data in answer:
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except EntrogateError as error:
        if isinstance(error, UpstreamError):
            gateway.metrics.record_upstream_error(type(error).__name__)
        await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _request_id(answer: UpstreamAnswer) -> list[tuple[bytes, bytes]]:
    said = answer.headers.get("x-request-id", "")[:_LONGEST_ID]
    return [(b"x-request-id", said.encode("latin-1", "replace"))] if said else []

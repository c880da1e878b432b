"""``/v1/messages``: Anthropic's Messages API, a door to the same turns as chat."""

from __future__ import annotations

import time

import orjson
from starlette.requests import Request
from starlette.responses import Response

from entrogate.errors import UpstreamProtocol
from entrogate.serve.access import caller_of
from entrogate.serve.chat import serve_turn
from entrogate.serve.door import MESSAGES_ROUTE, Door, envelope_of
from entrogate.serve.gateway import Gateway
from entrogate.turn.offloaded import worked_out
from entrogate.wire.messages.answer import MessagesAnswer
from entrogate.wire.messages.request import parse_count, parse_messages

_REQUEST_ID = "request-id"
_TOKENIZE = "/tokenize"


async def messages(request: Request) -> Response:
    """One message of the assistant, streamed or not."""
    received = time.perf_counter()
    gateway: Gateway = request.app.state.gateway
    parsed = await worked_out(parse_messages, await request.body())
    door = Door(route=MESSAGES_ROUTE, answer=MessagesAnswer(), request_id_header=_REQUEST_ID)
    caller = caller_of(request)
    return await serve_turn(
        gateway, parsed, request.headers, door, received=received, caller=caller
    )


async def count_tokens(request: Request) -> Response:
    """How many tokens the model would read; nothing is generated or recorded."""
    gateway: Gateway = request.app.state.gateway
    body = await worked_out(parse_count, await request.body())
    headers = gateway.client.headers(request.headers)
    async with gateway.client.request("POST", _TOKENIZE, body=body, headers=headers) as upstream:
        status, answer = upstream.status, await upstream.read()
    route = f"{MESSAGES_ROUTE}/count_tokens"
    if status != 200:
        status, answer = envelope_of(route)(status, answer)
    else:
        answer = orjson.dumps({"input_tokens": _count(answer)})
    gateway.metrics.record_request(route, status)
    return Response(answer, status, media_type="application/json")


def _count(answer: bytes) -> int:
    try:
        return int(orjson.loads(answer)["count"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise UpstreamProtocol("the upstream's answer to /tokenize has no count") from None

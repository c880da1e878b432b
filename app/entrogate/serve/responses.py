"""``/v1/responses``: OpenAI's Responses API, a door to the same turns as chat.

``previous_response_id`` needs no state of its own: the store has what was said.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from entrogate.errors import RequestError
from entrogate.serve.access import caller_of
from entrogate.serve.chat import serve_turn
from entrogate.serve.door import RESPONSES_ROUTE, Door
from entrogate.serve.gateway import Gateway
from entrogate.store.admin.erasure import ToErase
from entrogate.store.read.conversation import Conversation
from entrogate.turn.offloaded import worked_out
from entrogate.wire.answer import chat_id
from entrogate.wire.body import parse_json_object, to_json
from entrogate.wire.opt_out import allows_recording, is_recorded
from entrogate.wire.responses.answer import ResponsesAnswer
from entrogate.wire.responses.request import responses_request, wants_logprobs
from entrogate.wire.responses.stored import stored_response


async def responses(request: Request) -> Response:
    """One response, streamed or not."""
    received = time.perf_counter()
    gateway: Gateway = request.app.state.gateway
    body = await worked_out(parse_json_object, await request.body())
    if not is_recorded(allows_recording(body), request.headers):
        body = {**body, "store": False}  # as the answer is to say
    caller = caller_of(request)
    earlier = await _earlier(gateway, body, caller.tenant)
    parsed = responses_request(body, earlier.messages if earlier is not None else ())
    door = Door(route=RESPONSES_ROUTE, answer=ResponsesAnswer(body, logprobs=wants_logprobs(body)))
    return await serve_turn(
        gateway,
        parsed,
        request.headers,
        door,
        received=received,
        caller=caller,
        follows=earlier.head if earlier is not None else None,
    )


async def response(request: Request) -> Response:
    """A response that was given before."""
    gateway: Gateway = request.app.state.gateway
    name: str = request.path_params["response_id"]
    found = await gateway.store.answer(chat_id(name), caller_of(request).tenant)
    if found is None:
        raise _not_found(name)
    gateway.metrics.record_request(f"{RESPONSES_ROUTE}/{{response_id}}", 200)
    body = to_json(stored_response(chat_id(name), found))
    return Response(body, media_type="application/json")


async def erase_response(request: Request) -> Response:
    """Erase a response with the trajectory that it is part of."""
    gateway: Gateway = request.app.state.gateway
    name: str = request.path_params["response_id"]
    caller = caller_of(request)
    found = await gateway.store.conversation(chat_id(name), caller.tenant)
    if found is None:
        raise _not_found(name)
    whole = ToErase.trajectory(found.head.trajectory_id)
    await gateway.store.admin.erase(whole, actor=caller.actor)
    gateway.metrics.record_request(f"{RESPONSES_ROUTE}/{{response_id}}", 200)
    deleted = {"id": name, "object": "response", "deleted": True}
    return Response(to_json(deleted), media_type="application/json")


def _not_found(name: str) -> RequestError:
    return RequestError(
        f"no response {name!r} is stored here",
        status=404,
        code="response_not_found",
        param="response_id",
    )


async def _earlier(gateway: Gateway, body: dict[str, Any], tenant: str) -> Conversation | None:
    """What was said up to the response that the request goes on from."""
    name = body.get("previous_response_id")
    if name is None:
        return None
    found = await gateway.store.conversation(chat_id(str(name)), tenant)
    if found is None:
        raise RequestError(
            f"previous_response_id: no response {name!r} is stored here",
            status=404,
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return found

"""``/v1/chat/completions``: from a request to a turn, and to the response that serves it.

The other doors (`serve.messages`, `serve.responses`) bring their requests here as chat requests.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from entrogate.serve.access import caller_of
from entrogate.serve.door import CHAT_DOOR, Door, folded, translated
from entrogate.serve.gateway import MODE_HEADER, Gateway, markers_of
from entrogate.serve.judge import Judge
from entrogate.serve.linkage import TRAJECTORY_HEADER, link
from entrogate.serve.respond import (
    WEIGHTS_HEADER,
    WatchedResponse,
    read_body,
    send_answer,
    send_stream,
)
from entrogate.serve.streaming import StreamedTurn
from entrogate.serve.turn import Leg, Turn
from entrogate.types import TurnHead
from entrogate.weights.leases import Lease
from entrogate.wire.history import earlier_calls
from entrogate.wire.request import ChatRequest, parse_chat

_log = logging.getLogger("entrogate.serve")

DEBUG_HEADER = "x-entrogate-debug"
REQUEST_ID_HEADER = "x-request-id"


async def chat(request: Request) -> Response:
    """One assistant turn, streamed or not."""
    received = time.perf_counter()
    gateway: Gateway = request.app.state.gateway
    parsed = parse_chat(await read_body(request, gateway.settings.serve))
    tenant = caller_of(request).tenant
    return await serve_turn(
        gateway, parsed, request.headers, CHAT_DOOR, received=received, tenant=tenant
    )


async def serve_turn(
    gateway: Gateway,
    parsed: ChatRequest,
    headers: Mapping[str, str],
    door: Door,
    *,
    received: float,
    tenant: str,
    follows: TurnHead | None = None,
) -> Response:
    """The answer to ``parsed``, in the form of ``door``; ``follows`` is the turn before it if the
    client named it."""
    turn = await _turn(gateway, parsed, headers, received=received, follows=follows, tenant=tenant)
    answer_headers = {
        REQUEST_ID_HEADER: turn.request_id,
        TRAJECTORY_HEADER: turn.link.trajectory_id,
        **door.headers(turn.request_id),
    }
    # From here on the turn holds a lease on its weights: each way out gives it back.
    if parsed.stream:
        return await _streamed(turn, answer_headers, door)
    return _whole(turn, answer_headers, door)


async def _turn(
    gateway: Gateway,
    parsed: ChatRequest,
    headers: Mapping[str, str],
    *,
    received: float,
    follows: TurnHead | None,
    tenant: str,
) -> Turn:
    mode = gateway.mode_for(headers.get(MODE_HEADER))
    capabilities = await gateway.capabilities()
    earlier = earlier_calls(parsed.messages)
    linked = await link(gateway.store, parsed, headers, earlier, follows=follows, tenant=tenant)
    request_id = headers.get(REQUEST_ID_HEADER) or os.urandom(16).hex()
    if linked.fault is not None:
        gateway.metrics.record_store_error("link")
        _log.error("turn.unlinked request=%s %s", request_id, linked.fault)
    upstream_headers = gateway.client.headers(headers)
    upstream_headers[REQUEST_ID_HEADER] = request_id
    judge = Judge(
        policy=gateway.policy,
        mode=mode,
        markers=markers_of(capabilities),
        tool_choice=parsed.tool_choice,
        earlier=earlier,
        can_suppress=capabilities.tool_call_token_id is not None and capabilities.capture,
        can_replay=parsed.n == 1,
    )
    lease = gateway.weights.lease(
        parsed.model,
        capabilities.base_models,
        linked.trajectory_id,
        "" if linked.parent is None else linked.parent.weight_version,
    )
    turn = Turn(
        gateway=gateway,
        capabilities=capabilities,
        request=parsed,
        lease=lease,
        headers=upstream_headers,
        request_id=request_id,
        link=linked,
        judge=judge,
        debug=headers.get(DEBUG_HEADER) == "1",
        received=received,
        leg=Leg(request=_addressed(parsed, lease), parent=linked.parent),
    )
    if gateway.tracing is not None:
        from entrogate.serve.turn_spans import TurnSpans

        turn.spans = TurnSpans(gateway.tracing, turn)
    return turn


def _addressed(request: ChatRequest, lease: Lease) -> ChatRequest:
    return request if lease.name is None else request.addressed_to(lease.name)


async def _streamed(turn: Turn, headers: dict[str, str], door: Door) -> Response:
    """The upstream's head decides the status, so it is asked before the response begins."""
    metrics = turn.gateway.metrics
    streamed = StreamedTurn(turn)

    def began() -> None:
        metrics.observe_first_event(time.perf_counter() - turn.received)

    async with AsyncExitStack() as unanswered:
        unanswered.callback(turn.let_go)
        unanswered.callback(turn.end_spans)
        unanswered.push_async_callback(streamed.close)
        upstream = await streamed.open()
        if upstream.status != 200:
            status, body = door.error(upstream.status, await upstream.read())
            metrics.record_request(door.route, status)
            return Response(body, status, {"content-type": "application/json", **headers})
        if turn.lease.version is not None:
            headers[WEIGHTS_HEADER] = turn.lease.version
        unanswered.pop_all()

    async def work(send: Send) -> None:
        with metrics.in_flight(door.route):
            events = translated(streamed, door)
            try:
                await send_stream(send, events, headers, began, door.last_words)
            finally:
                await events.aclose()
                turn.let_go()
        metrics.record_request(door.route, 200)
        metrics.observe_answer(time.perf_counter() - turn.received)

    return WatchedResponse(work)


def _whole(turn: Turn, headers: dict[str, str], door: Door) -> Response:
    metrics = turn.gateway.metrics

    async def work(send: Send) -> None:
        with metrics.in_flight(door.route):
            try:
                await send_answer(
                    send,
                    folded(turn, door),
                    headers,
                    lambda status: metrics.record_request(door.route, status),
                    door.error,
                )
                metrics.observe_answer(time.perf_counter() - turn.received)
            finally:
                turn.let_go()
                turn.end_spans()

    return WatchedResponse(work)

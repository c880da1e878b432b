"""``/v1/chat/completions``: from a request to a turn, and to the response that serves it.

The other doors (`serve.messages`, `serve.responses`) bring their requests here as chat requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from entrogate.errors import EntrogateError
from entrogate.gate.policy import Policy
from entrogate.serve.access import Caller, caller_of
from entrogate.serve.door import CHAT_DOOR, Door, translated
from entrogate.serve.gateway import MODE_HEADER, Gateway, markers_of
from entrogate.serve.sending import (
    WEIGHTS_HEADER,
    WatchedResponse,
    send_body,
    send_stream,
)
from entrogate.turn.body import BodyForm
from entrogate.turn.guard import Guard
from entrogate.turn.ids import trace_id
from entrogate.turn.judge import Judge
from entrogate.turn.link import TRAJECTORY_HEADER, Link, link, unlinked
from entrogate.turn.machine import Machine
from entrogate.turn.offloaded import large_history, worked_out
from entrogate.turn.session import REQUEST_ID_HEADER, Session
from entrogate.turn.state import Leg, Turn
from entrogate.turn.stream import StreamForm
from entrogate.types import Mode, TurnHead
from entrogate.wire.errors import describe
from entrogate.wire.history import CallHistory
from entrogate.wire.opt_out import is_recorded
from entrogate.wire.request import ChatRequest, parse_chat

_log = logging.getLogger("entrogate.serve")

DEBUG_HEADER = "x-entrogate-debug"
DECISION_HEADER = "x-entrogate-decision"


async def chat(request: Request) -> Response:
    """One assistant turn, streamed or not."""
    received = time.perf_counter()
    gateway: Gateway = request.app.state.gateway
    parsed = await worked_out(parse_chat, await request.body())
    caller = caller_of(request)
    return await serve_turn(
        gateway, parsed, request.headers, CHAT_DOOR, received=received, caller=caller
    )


async def serve_turn(
    gateway: Gateway,
    parsed: ChatRequest,
    headers: Mapping[str, str],
    door: Door,
    *,
    received: float,
    caller: Caller,
    follows: TurnHead | None = None,
) -> Response:
    """The answer to ``parsed``, in the form of ``door``; ``follows`` is the turn before it if the
    client named it."""
    turn = await _turn(gateway, parsed, headers, received=received, follows=follows, caller=caller)
    upstream_headers = gateway.client.headers(headers)
    response = _TurnResponse(gateway, turn, door)

    async def work(send: Send) -> None:
        with gateway.metrics.in_flight(door.route), gateway.shadows.client_turn():
            lease = gateway.weights.lease(
                parsed.model,
                turn.capabilities.base_models,
                turn.link.trajectory_id,
                "" if turn.link.parent is None else turn.link.parent.weight_version,
            )
            try:
                async with Session(gateway, turn, lease, upstream_headers) as session:
                    status = await response.answer(send, session)
            finally:  # also where the client is gone as soon as it has the last byte
                with turn.guard.around("shadow"):
                    gateway.shadows.take(turn, upstream_headers)
        gateway.metrics.record_request(door.route, status)
        if status == 200:
            gateway.metrics.observe_answer(time.perf_counter() - turn.received)

    def on_gone() -> None:
        turn.client_left = True

    return WatchedResponse(work, on_gone)


async def _turn(
    gateway: Gateway,
    parsed: ChatRequest,
    headers: Mapping[str, str],
    *,
    received: float,
    follows: TurnHead | None,
    caller: Caller,
) -> Turn:
    wished = gateway.wished_mode(headers.get(MODE_HEADER))
    capabilities = await gateway.capabilities()
    earlier = await _earlier(parsed)
    tenant, recorded = caller.tenant, is_recorded(parsed.recorded, headers)
    if recorded:
        linked = await link(gateway.store, parsed, headers, earlier, follows=follows, tenant=tenant)
    else:
        linked = unlinked(tenant)
    request_id = trace_id(headers.get(REQUEST_ID_HEADER), parsed.request_id)
    if linked.fault is not None:
        gateway.metrics.record_store_error("link")
        _log.error("turn.unlinked request=%s %s", request_id, linked.fault)
    policy = _policy(gateway, linked, recorded=recorded)
    return Turn(
        request=parsed,
        request_id=request_id,
        capabilities=capabilities,
        link=linked,
        judge=Judge(
            policy=policy,
            mode=_mode(linked, wished or gateway.policies.mode_of(policy)),
            markers=markers_of(capabilities),
            tool_choice=parsed.tool_choice,
            earlier=earlier,
            parent=linked.parent,
            blown=gateway.fuses.blown(policy),
            can_replay=parsed.n == 1,
            now=gateway.clock.now,
        ),
        guard=Guard(metrics=gateway.metrics, request_id=request_id),
        call_text=gateway.tool_call_token,
        draw=gateway.random.random,
        debug=headers.get(DEBUG_HEADER) == "1",
        received=received,
        legs=[Leg(request=parsed, parent=linked.parent)],
        weight_version=None,
        recorded=recorded,
        key_id=caller.key_id,
    )


async def _earlier(parsed: ChatRequest) -> CallHistory:
    read = partial(CallHistory.of, failed=parsed.failed_results)
    return await worked_out(read, parsed.messages, large=large_history(parsed.size_bytes))


def _policy(gateway: Gateway, linked: Link, *, recorded: bool) -> Policy:
    """The policy of a new turn; it keeps it to its end, whatever comes into force meanwhile."""
    if not recorded:  # nothing tells its next turn which one it had
        return gateway.policies.main
    began_on = "" if linked.parent is None else linked.parent.policy_version
    return gateway.policies.policy_for(linked.trajectory_id, began_on)


def _mode(linked: Link, mode: Mode) -> Mode:
    """After an audited call a trajectory is only observed, as those that a promise is made of.

    With the gate going on, more of them would end right, and more audits would be losses.
    """
    audited = linked.parent is not None and linked.parent.audited
    return Mode.OBSERVE if audited and mode is Mode.ENFORCE else mode


class _TurnResponse:
    """Sends one turn through a door."""

    def __init__(self, gateway: Gateway, turn: Turn, door: Door) -> None:
        self._gateway = gateway
        self._turn = turn
        self._door = door
        self._headers = {
            REQUEST_ID_HEADER: turn.request_id,
            **({TRAJECTORY_HEADER: turn.link.trajectory_id} if turn.recorded else {}),
            **door.headers(turn.request_id),
        }

    async def answer(self, send: Send, session: Session) -> int:
        """Send the answer, or the error that stood in its way; returns the status."""
        serve = self._stream if self._turn.request.stream else self._whole
        try:
            return await serve(send, session)
        except EntrogateError as error:
            status, body = self._door.error(*describe(error))
        except Exception as error:  # noqa: BLE001  (the request boundary)
            _log.exception("request.failed request=%s", self._turn.request_id)
            status, body = self._door.error(*describe(error))
        # Only what comes before the first byte is raised to here.
        await send_body(send, status, body, self._headers)
        return status

    async def _stream(self, send: Send, session: Session) -> int:
        gateway, turn, door = self._gateway, self._turn, self._door
        machine = Machine(session, StreamForm(turn))
        refused = await machine.open()
        if refused is not None:
            return await self._refuse(send, *refused)
        events = machine.events()
        if door.answer is not None:
            events = translated(events, door.answer, turn.note_fault)
        try:
            await send_stream(
                send,
                events,
                {**self._headers, **self._weights()},
                lambda: gateway.metrics.observe_first_event(time.perf_counter() - turn.received),
                door.last_words,
            )
        finally:
            await events.aclose()
        return 200

    async def _whole(self, send: Send, session: Session) -> int:
        door, form = self._door, BodyForm(self._turn)
        machine = Machine(session, form)
        refused = await machine.open()
        if refused is not None:
            return await self._refuse(send, *refused)
        body = b"".join([out async for out in machine.events()])
        if door.answer is not None:
            body = door.answer.fold(body)
        headers = {**self._headers, **self._weights()}
        if form.decision is not None:
            headers[DECISION_HEADER] = form.decision
        await send_body(send, 200, body, headers)
        return 200

    async def _refuse(self, send: Send, status: int, body: bytes) -> int:
        """Say in the door's envelope what the model server said."""
        status, body = self._door.error(status, body)
        after = self._turn.retry_after
        headers = {"retry-after": after} if 0 < len(after) < 64 and after.isprintable() else {}
        await send_body(send, status, body, {**self._headers, **headers})
        return status

    def _weights(self) -> dict[str, str]:
        version = self._turn.weight_version
        return {} if version is None else {WEIGHTS_HEADER: version}

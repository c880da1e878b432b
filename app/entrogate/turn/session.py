"""What a running turn holds on to, with one owner.

`Session` is entered once for each request and left on every way out, so that the weights, the
connection to the model server, the capture and the spans are given back whatever happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from entrogate.engine.frames import GATE_ARGUMENT
from entrogate.engine.gate import GateNumbers
from entrogate.errors import EntrogateError, StoreError, UpstreamProtocol
from entrogate.turn.choice import Choice
from entrogate.turn.ids import mint_answer
from entrogate.turn.parts import Parts
from entrogate.turn.record import leg_records
from entrogate.turn.state import Turn
from entrogate.turn.without import arguments_of
from entrogate.types import TurnRecord
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.captures import RequestCapture
from entrogate.upstream.resume import resume_request
from entrogate.weights.leases import Lease
from entrogate.wire.body import to_json

if TYPE_CHECKING:  # it needs the extra `otel`
    from entrogate.turn.tracing import TurnSpans

_log = logging.getLogger("entrogate.turn")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
REQUEST_ID_HEADER = "x-request-id"


class Session:
    """The owner of what ``turn`` holds; asks the model server on its behalf."""

    def __init__(self, parts: Parts, turn: Turn, lease: Lease, headers: Mapping[str, str]) -> None:
        self.parts = parts
        self.turn = turn
        self.lease = lease
        self.spans: TurnSpans | None = None
        self.headers = headers  # of every request to the model server
        self._connection = AsyncExitStack()
        self._capture: RequestCapture | None = None  # what the engine sends of the current leg

    async def __aenter__(self) -> Self:
        if self.parts.tracing is not None:
            from entrogate.turn.tracing import TurnSpans

            with self.turn.guard.around("traces"):
                self.spans = TurnSpans(self.parts.tracing, self.turn)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.hang_up()
        finally:
            self.stop_capture()
            self.lease.release()
            if self.spans is not None:
                with self.turn.guard.around("traces"):
                    self.spans.end()

    async def ask_chat(self) -> UpstreamAnswer:
        """Send the current leg; on other weights where vLLM has lost those of the turn."""
        while True:
            lease = self.lease
            self.turn.weight_version = lease.version
            if lease.name is not None:
                self.turn.leg.request = self.turn.leg.request.addressed_to(lease.name)
            self._settle_mode()
            body = self._chat_body()
            if self.turn.first_leg:
                waited = time.perf_counter() - self.turn.received
                self.parts.metrics.observe_gateway(waited)
            response = await self._ask(CHAT, body, self.turn.leg.name)
            if response.status != 404 or not self._fall_back():
                return response

    def _settle_mode(self) -> None:
        """Now that it is known what answers: may the gate do what its mode says?"""
        turn, judge = self.turn, self.turn.judge
        named = turn.leg.request.model
        judge.mode = self.parts.mode_of_turn(
            judge.policy,
            judge.mode,
            weights=self.lease.version or named,
            model=named,
            counts=turn.first_leg,
        )

    async def ask_resumed(self, body: dict[str, Any]) -> UpstreamAnswer:
        """Send the request for the rest of an answer, without its call. UpstreamError if it may
        not go on."""
        response = await self._ask(COMPLETIONS, to_json(body), mint_answer())
        if response.status != 200:
            detail = (await response.read())[:300].decode(errors="replace")
            raise UpstreamProtocol(f"resuming answered {response.status}: {detail}")
        return response

    async def hang_up(self) -> None:
        """Let go of the connection; in the middle of an answer this aborts it upstream."""
        connection, self._connection = self._connection, AsyncExitStack()
        await connection.aclose()

    def stop_capture(self) -> None:
        """Collect no more of what the engine sends. Safe to call twice."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()

    async def collect(self) -> None:
        """The current leg's answer is complete: take over its capture and check the count."""
        if self._capture is not None:
            await self._capture.complete(self.turn.request.n)
        self.take_captured()
        self.turn.leg.check_usage()

    def take_captured(self) -> None:
        """Take what the engine has sent of the current leg so far."""
        capture, leg = self._capture, self.turn.leg
        if capture is None:
            return
        self.stop_capture()
        with self.turn.guard.around("capture"):
            counted = None if leg.usage is None else leg.usage.completion_tokens
            if self.turn.request.n > 1:
                counted = None
            for index, captured in capture.choices.items():
                if index < self.turn.request.n:
                    self.turn.choice(index).tokens.take_captured(captured, counted)
            prompts = [c.prompt_token_ids for c in capture.choices.values() if c.prompt_token_ids]
            if prompts:
                self.turn.set_prompt(np.frombuffer(prompts[0], dtype="<i4").tolist())
        for choice in leg.choices.values():
            if choice.tokens.exact is None:
                choice.tokens.mark("capture_incomplete")

    def resume_body(
        self, choice: Choice, position: int, capture: RequestCapture | None, seed: int | None = None
    ) -> dict[str, Any] | None:
        """The request that goes on without the call that opens at ``position``; None: no room.

        ``seed`` stands instead of the client's.
        """
        turn = self.turn
        return resume_request(
            turn.leg.request,
            turn.capabilities,
            prompt_token_ids=turn.leg.prompt_token_ids,
            kept_token_ids=choice.tokens.ids[:position],
            seed=seed,
            arguments=None if capture is None else self._named(capture),
        )

    def follow(self, stack: ExitStack, choice: Choice) -> RequestCapture | None:
        """What the engine will send of the rest of ``choice``, until ``stack`` is left."""
        channel = self.parts.channel
        if channel is None or choice.tokens.exact is None:
            return None
        return stack.enter_context(channel.follow())

    def records(self, *, final: bool) -> list[TurnRecord]:
        """What is stored of the current leg; ``final``: the client gets it."""
        self.take_captured()  # of an answer that broke off
        turn = self.turn
        found = leg_records(turn, final=final)
        if self.spans is not None:
            with turn.guard.around("traces"):
                self.spans.leg_done(found)
        return found

    async def commit(self, records: list[TurnRecord]) -> None:
        """Store ``records``, if they may be, and count them.

        A recording fault never breaks the response.
        """
        if not records:
            return
        turn, metrics = self.turn, self.parts.metrics
        turn.records.extend(records)
        with turn.guard.around("store"):
            try:
                if turn.recorded:
                    turn.heads.extend(await self.parts.store.commit_turns(records))
                    turn.stored.extend((turn.leg, record) for record in records)
            except StoreError as error:
                metrics.record_store_error("commit", len(records))
                _log.error("turn.unrecorded request=%s %s", turn.request_id, error)
        with turn.guard.around("metrics"):
            called = turn.judge.earlier.last_called()
            for record in records:
                metrics.record_turn(
                    record, mode=turn.judge.mode, policy=turn.judge.policy.name, called=called
                )
            metrics.observe_gate(turn.judge.seconds)
            turn.judge.seconds = 0.0

    async def _ask(self, path: str, body: bytes, name: str) -> UpstreamAnswer:
        await self.hang_up()
        headers = {**self.headers, REQUEST_ID_HEADER: name}
        connection = self._connection
        if self.spans is not None:
            with self.turn.guard.around("traces"):
                headers = dict(
                    connection.enter_context(
                        self.spans.request(self.parts.client.base_url, path, headers)
                    )
                )
        try:
            response = await connection.enter_async_context(
                self.parts.client.request("POST", path, body=body, headers=headers)
            )
        except EntrogateError as error:
            if self.spans is not None:
                with self.turn.guard.around("traces"):
                    self.spans.failed(type(error).__name__)
            raise
        if self.spans is not None and response.status != 200:
            with self.turn.guard.around("traces"):
                self.spans.refused(response.status)
        return response

    def _chat_body(self) -> bytes:
        request, channel = self.turn.leg.request, self.parts.channel
        self.stop_capture()
        if channel is None or not self.turn.capabilities.engine:
            found = self.turn.capabilities
            top = found.top_logprobs if found.token_ids else 0  # alone they say nothing
            return to_json(request.upstream(top, token_ids=found.token_ids, usage=found.usage))
        self._capture = channel.follow()
        arguments = self._named(self._capture)
        numbers: GateNumbers | None = None
        with self.turn.guard.around("gate"):
            numbers = self._gate_numbers()
        if numbers is not None:
            arguments[GATE_ARGUMENT] = numbers.pack()
        return to_json(request.upstream_captured(arguments))

    def _named(self, capture: RequestCapture) -> dict[str, Any]:
        return arguments_of(self.parts, self.turn.capabilities, capture)

    def _gate_numbers(self) -> GateNumbers | None:
        """What the gate in the engine is to do; with ``n > 1`` the choices share one draw."""
        turn = self.turn
        if not turn.judge.acts or not turn.request.has_tools or turn.request.n > 1:
            return None
        return turn.judge.numbers(
            turn.choice(0),
            turn.request.tool_names,
            turn.capabilities.blank_token_ids,
            # What the model is unsure of after a result is how to read it: asking again is no help.
            may_force=turn.leg.request.last_role != "tool",
        )

    def _fall_back(self) -> bool:
        """vLLM does not know the weights of the turn (it was restarted): take stable ones.

        False where that is for the client to know, because it named them.
        """
        lease, turn = self.parts.weights.instead_of(self.lease), self.turn
        if lease is None:
            return False
        _log.warning(
            "turn.rerouted request=%s from=%s to=%s",
            turn.request_id,
            self.lease.version,
            lease.version,
        )
        self.lease = lease
        turn.leg.request = turn.leg.request.addressed_to(lease.name or turn.request.model)
        return True

"""One request on its way, and what its legs have in common.

A turn has one leg (one upstream chat request) unless a call is replayed: then the gateway plays the
client's round trip itself and the turn goes on with another leg.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from entrogate.engine.frames import GATE_ARGUMENT, REQUEST_ARGUMENT
from entrogate.engine.gate import GateNumbers
from entrogate.errors import StoreError
from entrogate.gate.reasons import Reason
from entrogate.serve.choice import Choice
from entrogate.serve.gateway import Gateway
from entrogate.serve.judge import Judge
from entrogate.serve.linkage import Link
from entrogate.serve.recording import turn_record
from entrogate.types import Action, CallRecord, Decision, TurnHead, TurnRecord
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.captures import RequestCapture
from entrogate.upstream.handshake import Capabilities
from entrogate.upstream.resume import resume_request
from entrogate.weights.leases import Lease
from entrogate.wire.history import EarlierCall, call_key, last_called
from entrogate.wire.request import ChatRequest

if TYPE_CHECKING:  # it needs the extra `otel`
    from entrogate.serve.turn_spans import TurnSpans

_log = logging.getLogger("entrogate.serve")


@dataclass(slots=True, kw_only=True)
class Leg:
    """One upstream chat request of a turn and what came of it."""

    request: ChatRequest
    parent: TurnHead | None
    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)  # the same moment; no jump of the clock
    prompt_token_ids: list[int] = field(default_factory=list[int])
    response_id: str = ""
    created: int = 0
    model: str = ""
    choices: dict[int, Choice] = field(default_factory=dict[int, Choice])
    decided: dict[int, tuple[CallRecord, ...]] = field(
        default_factory=dict[int, tuple[CallRecord, ...]]
    )
    error: str | None = None
    completion_tokens: int | None = None  # as the server counted
    captured: RequestCapture | None = None  # what the engine sends of it

    def check_usage(self) -> None:
        """Mark every choice when the tokens we saw are not those the server counted."""
        seen = sum(len(choice.token_ids) for choice in self.choices.values())
        if self.completion_tokens == seen:
            return
        for choice in self.choices.values():
            choice.gap = choice.gap or (
                "usage_missing" if self.completion_tokens is None else "count_mismatch"
            )


@dataclass(slots=True, kw_only=True)
class Turn:
    """A chat request, where it attaches, and its legs."""

    gateway: Gateway
    capabilities: Capabilities
    request: ChatRequest
    headers: Mapping[str, str]
    request_id: str
    link: Link
    judge: Judge
    lease: Lease
    debug: bool
    received: float  # time.perf_counter() when the request came in
    leg: Leg
    legs_done: int = 0
    heads: list[TurnHead] = field(default_factory=list[TurnHead])
    records: list[TurnRecord] = field(default_factory=list[TurnRecord])
    spans: TurnSpans | None = None  # None: turns are not traced

    @asynccontextmanager
    async def asked(self, path: str, body: bytes) -> AsyncGenerator[UpstreamAnswer]:
        """vLLM's answer to a request of this turn; leaving the block before its end aborts it."""
        headers = self.headers
        with ExitStack() as traced:
            if self.spans is not None:
                headers = traced.enter_context(self.spans.request(self, path))
            async with self.gateway.client.request(
                "POST", path, body=body, headers=headers
            ) as response:
                if self.spans is not None and response.status != 200:
                    self.spans.refused(response.status)
                yield response

    def new_choice(self, index: int) -> Choice:
        """The accumulator of choice ``index`` of the current leg."""
        choice = self.leg.choices.get(index)
        if choice is None:
            call_text = self.gateway.settings.upstream.tool_call_token
            tools = self.request.has_tools
            choice = Choice(index, self.capabilities, call_text if tools else None)
            if "logprob_token_ids" in self.request.body:
                choice.gap = "logprob_token_ids"
            self.judge.draw_for(choice, self.gateway.random.random())
            self.leg.choices[index] = choice
        return choice

    def upstream_body(self) -> bytes:
        """The request for the current leg."""
        request, channel = self.leg.request, self.gateway.channel
        if channel is None or not self.capabilities.engine:
            return orjson.dumps(request.upstream(self.capabilities.top_logprobs))
        self.leg.captured = channel.follow()
        arguments: dict[str, Any] = {
            REQUEST_ARGUMENT: channel.argument(
                self.leg.captured, self.capabilities.tool_call_token_id
            )
        }
        numbers = self._gate_numbers()
        if numbers is not None:
            arguments[GATE_ARGUMENT] = numbers.pack()
        return orjson.dumps(request.upstream_captured(arguments))

    def _gate_numbers(self) -> GateNumbers | None:
        """What the gate in the engine is to do; with ``n > 1`` the choices share one draw."""
        if not self.judge.acts or not self.request.has_tools or self.request.n > 1:
            return None
        return self.judge.numbers(
            self.new_choice(0),
            self.request.tool_names,
            self.capabilities.blank_token_ids,
            # What the model is unsure of after a result is how to read it: asking again is no help.
            may_force=self.leg.request.messages[-1].get("role") != "tool",
        )

    def fall_back(self) -> bool:
        """vLLM does not know the weights of the turn (it was restarted): take stable ones.

        False where that is for the client to know, because it named them.
        """
        lease = self.gateway.weights.instead_of(self.lease)
        if lease is None:
            return False
        _log.warning(
            "turn.rerouted request=%s from=%s to=%s",
            self.request_id,
            self.lease.version,
            lease.version,
        )
        self.lease = lease
        self.leg.request = self.leg.request.addressed_to(lease.name or self.request.model)
        if self.leg.captured is not None:
            self.leg.captured.close()
            self.leg.captured = None
        return True

    def let_go(self) -> None:
        """The turn needs its weights no more. Safe to call twice."""
        self.lease.release()

    def end_spans(self) -> None:
        """No leg will be recorded any more. Safe to call twice."""
        if self.spans is not None:
            self.spans.end()

    async def collect(self) -> None:
        """The current leg's answer is complete: take over its capture and check the count."""
        leg = self.leg
        if leg.captured is not None:
            await leg.captured.complete(self.request.n)
            self._take_captured()
        leg.check_usage()

    def _take_captured(self) -> None:
        """Take what the engine has sent of the current leg so far."""
        leg, followed = self.leg, self.leg.captured
        if followed is None:
            return
        leg.captured = None
        followed.close()
        counted = leg.completion_tokens if self.request.n == 1 else None
        for index, captured in followed.choices.items():
            self.new_choice(index).take_captured(captured, counted)
        prompts = [c.prompt_token_ids for c in followed.choices.values() if c.prompt_token_ids]
        if prompts:
            self.set_prompt(np.frombuffer(prompts[0], dtype="<i4").tolist())
        for choice in leg.choices.values():
            if choice.exact is None:
                choice.gap = choice.gap or "capture_incomplete"

    def set_prompt(self, prompt_token_ids: list[int]) -> None:
        self.leg.prompt_token_ids = prompt_token_ids
        opening = self.capabilities.reasoning_start_token_id
        self.judge.starts_in_reasoning = opening is not None and opening in prompt_token_ids[-4:]

    def resume_body(self, choice: Choice, position: int) -> dict[str, Any] | None:
        """The request that goes on without the call that opens at ``position``; None: no room."""
        body = resume_request(
            self.leg.request,
            self.capabilities,
            prompt_token_ids=self.leg.prompt_token_ids,
            kept_token_ids=choice.token_ids[:position],
        )
        channel = self.gateway.channel
        if body is not None and choice.exact is not None and channel is not None:
            self.leg.captured = channel.follow()
            call_id = self.capabilities.tool_call_token_id
            argument = channel.argument(self.leg.captured, call_id)
            body["vllm_xargs"] = {**body.get("vllm_xargs", {}), REQUEST_ARGUMENT: argument}
        return body

    async def collect_resumed(self, choice: Choice) -> None:
        """The answer after a suppressed call is complete: take over its capture."""
        followed, self.leg.captured = self.leg.captured, None
        if followed is None:
            return
        with followed:
            await followed.complete(1)
        if 0 in followed.choices:
            choice.take_captured(followed.choices[0], None)
        else:
            choice.gap = choice.gap or "capture_incomplete"

    def fail_open(self, choice: Choice, what: str) -> None:
        """Let the calls of ``choice`` through although the policy said otherwise."""
        self.gateway.metrics.record_gate_fault()
        _log.warning("gate.failed_open request=%s %s", self.request_id, what)
        self.leg.decided[choice.index] = tuple(
            replace(record, decision=_allowed(record.decision))
            for record in self.leg.decided.get(choice.index, ())
        )

    def applied(self, choice: Choice) -> Action:
        """What is done with the calls of ``choice``: the gate decides them alike or allows all."""
        records = self.leg.decided.get(choice.index, ())
        return records[0].decision.applied if records else Action.ALLOW

    async def finish_leg(self, *, final: bool) -> None:
        """Commit the current leg. A recording fault never breaks the response."""
        leg = self.leg
        self._take_captured()  # of an answer that broke off
        for choice in leg.choices.values():
            if choice.gated is not None and choice.index not in leg.decided:
                leg.decided[choice.index] = self.judge.decide_unsampled(
                    choice, self.request.tool_names
                )
        records = [
            turn_record(self, leg, choice, final=final) for _, choice in sorted(leg.choices.items())
        ]
        if self.spans is not None:
            self.spans.leg_done(self, records)
        if not records:
            return
        metrics = self.gateway.metrics
        try:
            heads = await self.gateway.store.commit_turns(records)
        except StoreError as error:
            metrics.record_store_error("commit", len(records))
            _log.error("turn.unrecorded request=%s %s", self.request_id, error)
        else:
            self.heads.extend(heads)
        self.records.extend(records)
        called = last_called(self.judge.earlier)
        for record in records:
            metrics.record_turn(record, mode=self.judge.mode, called=called)
        metrics.observe_gate(self.judge.seconds)
        self.judge.seconds = 0.0

    def replay_calls(self, choice: Choice) -> None:
        """Start the next leg: the client's round trip with the results it already sent once."""
        records = self.leg.decided[choice.index]
        message = choice.message(calls=True)
        self._reason_like_the_client(message)
        results: list[dict[str, Any]] = []
        turn = len(self.leg.request.messages)
        for record in records:
            key = call_key(record.name, record.arguments)
            known = [e for e in self.judge.earlier if e.key == key and e.result is not None]
            content = known[-1].result
            results.append({"role": "tool", "tool_call_id": record.call_id, "content": content})
            self.judge.earlier.append(
                EarlierCall(
                    call_id=record.call_id, name=record.name, key=key, result=content, turn=turn
                )
            )
        messages = [*self.leg.request.messages, message, *results]
        body = {**self.leg.request.body, "messages": messages}
        request = replace(self.leg.request, messages=messages, body=body)
        self.judge.replays += 1
        self.legs_done += 1
        parent = self.heads[-1] if self.heads else self.leg.parent
        self.leg = Leg(request=request, parent=parent)

    def _reason_like_the_client(self, message: dict[str, Any]) -> None:
        """Send the reasoning back under the name that the client's own history uses, or not."""
        reasoning = message.pop("reasoning", None)
        for earlier in self.leg.request.messages:
            for name in ("reasoning", "reasoning_content"):
                if earlier.get("role") == "assistant" and earlier.get(name):
                    message[name] = reasoning
                    return


def _allowed(decision: Decision) -> Decision:
    return replace(decision, applied=Action.ALLOW, reason=Reason.GATE_FAULT, propensity=1.0)

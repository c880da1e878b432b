"""One request on its way: what its legs have in common, and the record they end in.

A turn has one leg (one upstream chat request) unless a call is replayed: then the gateway plays the
client's round trip itself and the turn goes on with another leg.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from entrogate.engine.frames import GATE_ARGUMENT, REQUEST_ARGUMENT
from entrogate.engine.gate import GateNumbers
from entrogate.errors import StoreError
from entrogate.gate.reasons import Reason
from entrogate.label.change import entropy_change
from entrogate.serve.choice import Choice
from entrogate.serve.gateway import Gateway
from entrogate.serve.judge import Judge
from entrogate.serve.linkage import Link, mint, new_results
from entrogate.serve.weights import Lease
from entrogate.types import BASE_WEIGHTS, Action, CallRecord, Decision, TurnHead, TurnRecord
from entrogate.upstream.captures import RequestCapture
from entrogate.upstream.handshake import Capabilities
from entrogate.upstream.resume import resume_request
from entrogate.wire.history import EarlierCall, call_key, fingerprint
from entrogate.wire.request import ChatRequest

_log = logging.getLogger("entrogate.serve")


@dataclass(slots=True, kw_only=True)
class Leg:
    """One upstream chat request of a turn and what came of it."""

    request: ChatRequest
    parent: TurnHead | None
    started_at: float = field(default_factory=time.time)
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
            _record(self, leg, choice, final=final) for _, choice in sorted(leg.choices.items())
        ]
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
        for record in records:
            metrics.record_turn(record, mode=self.judge.mode)
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

    def debug_object(self) -> dict[str, Any]:
        """The ``entrogate`` object of a debug answer."""
        return {
            "trajectory_id": self.link.trajectory_id,
            "mode": self.judge.mode,
            "policy": {
                "name": self.gateway.policy.name,
                "version": self.gateway.policy.version,
            },
            "wasted_tokens": sum(record.wasted_tokens for record in self.records),
            "turns": [_debug_turn(record) for record in self.records],
        }


def _allowed(decision: Decision) -> Decision:
    return replace(decision, applied=Action.ALLOW, reason=Reason.GATE_FAULT, propensity=1.0)


def _record(turn: Turn, leg: Leg, choice: Choice, *, final: bool) -> TurnRecord:
    capture = choice.capture()
    spans = turn.judge.spans(choice)
    complete = choice.gap is None and leg.error is None
    calls = leg.decided.get(choice.index, ())
    segment = calls[0].features.segment if calls else turn.judge.segment(choice, spans)
    suppressed = choice.resumes_at is not None
    message = choice.message(calls=not suppressed)
    parent = leg.parent
    seen = turn.request.messages if final else leg.request.messages
    prompt = np.asarray(leg.prompt_token_ids, dtype=np.int32)
    digest = hashlib.blake2b(prompt.tobytes(), digest_size=16)
    digest.update(capture.token_ids.tobytes())
    return TurnRecord(
        turn_id=mint("turn"),
        trajectory_id=turn.link.trajectory_id,
        task_id=turn.link.task_id,
        parent=parent,
        request_id=turn.request_id,
        response_id=leg.response_id,
        choice_index=choice.index,
        created_at=leg.started_at,
        duration_seconds=time.time() - leg.started_at,
        model=leg.model or leg.request.model,
        new_messages=orjson.dumps(_new_messages(leg)),
        n_messages=len(seen) + 1,
        tools=leg.request.tools(),
        params=leg.request.params(),
        response=orjson.dumps(message),
        finish_reason=choice.finish_reason,
        prompt_token_ids=prompt,
        capture=capture,
        spans=spans,
        segment=segment,
        altered=tuple(choice.altered),
        capture_gap=choice.gap or ("broken_off" if leg.error else None),
        wasted_tokens=choice.wasted_tokens,
        calls=calls,
        results=new_results(turn.link.parent, turn.judge.earlier) if turn.legs_done == 0 else (),
        change=None
        if parent is None or not parent.has_calls
        else entropy_change(
            parent.segment if parent.capture_complete else None,
            segment if complete else None,
            before_complete=parent.capture_complete,
            after_complete=complete,
        ),
        fingerprint=fingerprint([*seen, message]),
        sequence_hash=digest.digest(),
        replayed=not final,
        weight_version=_weight_version(turn, leg),
        metadata=turn.request.metadata,
        error=leg.error,
    )


def _weight_version(turn: Turn, leg: Leg) -> str:
    """Of the weights that answered; an adapter that is not published here goes by its name."""
    if turn.lease.version is not None:
        return turn.lease.version
    name = leg.model or leg.request.model
    return BASE_WEIGHTS if name in turn.capabilities.base_models else name


def _new_messages(leg: Leg) -> list[dict[str, Any]]:
    """The messages since the parent; all of them when the history was rewritten."""
    messages = leg.request.messages
    start = leg.parent.n_messages if leg.parent is not None else 0
    return messages[start:] if start <= len(messages) else messages


def _debug_turn(record: TurnRecord) -> dict[str, Any]:
    return {
        "turn_id": record.turn_id,
        "choice": record.choice_index,
        "replayed": record.replayed,
        "weight_version": record.weight_version,
        "estimator": record.capture.estimator,
        "top_k": record.capture.top_k,
        "segment": record.segment,
        "capture_gap": record.capture_gap,
        "wasted_tokens": record.wasted_tokens,
        "decisions": [
            {
                "call_id": call.call_id,
                "tool": call.name,
                "action": call.decision.action,
                "applied": call.decision.applied,
                "reason": call.decision.reason,
                "propensity": call.decision.propensity,
            }
            for call in record.calls
        ],
    }

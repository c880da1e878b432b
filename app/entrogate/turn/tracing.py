"""The spans of a turn: one for each request to vLLM, by OpenTelemetry's conventions for `gen_ai`.

What a turn came to is known when its leg is recorded, so a span waits for that, with the moment at
which its request ended. Texts, arguments and results are in no span.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from entrogate.observe.tracing import Tracing
from entrogate.types import CallRecord, SegmentStats, TurnRecord

if TYPE_CHECKING:
    from entrogate.turn.state import Turn

_PROVIDER = "vllm"
_DECISION_EVENT = "entrogate.decision"
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_PARAMETERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request to vLLM; its span is not over yet."""

    span: trace.Span
    is_chat: bool
    ended_at: int | None = None  # nanoseconds since the epoch

    def end(self) -> None:
        self.span.end(self.ended_at)


class TurnSpans:
    """Children of the span of the client's request, which is the current one when this is made."""

    def __init__(self, tracing: Tracing, turn: Turn) -> None:
        self._tracing = tracing
        self._turn = turn
        request, policy = trace.get_current_span(), turn.judge.policy
        self._context = trace.set_span_in_context(request)
        self._open: list[_Asked] = []
        request.set_attributes(
            {
                "gen_ai.conversation.id": turn.link.trajectory_id,
                "entrogate.request_id": turn.request_id,
                "entrogate.mode": turn.judge.mode.value,
                "entrogate.policy.name": policy.name,
                "entrogate.policy.version": policy.version,
            }
        )

    @contextmanager
    def request(
        self, base_url: str, path: str, headers: Mapping[str, str]
    ) -> Generator[Mapping[str, str]]:
        """The span of one request to vLLM; yields ``headers`` with those that carry it there."""
        operation, model = _OPERATIONS[path], self._turn.leg.request.model
        span = self._tracing.tracer.start_span(
            f"{operation} {model}",
            context=self._context,
            kind=trace.SpanKind.CLIENT,
            attributes={
                **_request_attributes(self._turn, operation, model),
                **_server(base_url),
            },
        )
        asked = _Asked(span=span, is_chat=operation == "chat")
        self._open.append(asked)
        carried = dict(headers)
        self._tracing.inject(carried, span)
        try:
            yield carried
        finally:
            asked.ended_at = time.time_ns()

    def refused(self, status: int) -> None:
        """vLLM answered the latest request with ``status``, which is no success."""
        self._open[-1].span.set_attribute("http.response.status_code", status)
        _fail(self._open[-1].span, str(status))

    def failed(self, error: str) -> None:
        """The latest request was not answered."""
        _fail(self._open[-1].span, error)

    def leg_done(self, records: Sequence[TurnRecord]) -> None:
        """The leg is recorded: say what came of it, and end its spans."""
        asked = [a for a in self._open if a.is_chat]
        if asked:
            _describe(asked[-1], self._turn, records)
        self.end()

    def end(self) -> None:
        """End what is still open. Safe to call twice."""
        for asked in self._open:
            asked.end()
        self._open.clear()


def _server(base_url: str) -> dict[str, AttributeValue]:
    where = urlsplit(base_url)
    return {
        "server.address": where.hostname or "",
        "server.port": where.port or (443 if where.scheme == "https" else 80),
    }


def _request_attributes(turn: Turn, operation: str, model: str) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.conversation.id": turn.link.trajectory_id,
    }
    body = turn.leg.request.body
    for name, attribute in _PARAMETERS.items():
        value = body.get(name)
        if isinstance(value, int | float):
            found[attribute] = value
    if turn.request.n > 1:
        found["gen_ai.request.choice.count"] = turn.request.n
    return found


def _describe(asked: _Asked, turn: Turn, records: Sequence[TurnRecord]) -> None:
    span, leg = asked.span, turn.leg
    if leg.error is not None:
        _fail(span, "broken_off")
    if not records:
        return
    span.set_attribute("gen_ai.response.id", leg.upstream_id or leg.response_id)
    if leg.model:
        span.set_attribute("gen_ai.response.model", leg.model)
    reasons = [record.finish_reason or "error" for record in records]
    span.set_attribute("gen_ai.response.finish_reasons", reasons)
    span.set_attribute("gen_ai.usage.input_tokens", len(leg.prompt_token_ids))
    sampled = sum(len(record.capture) + record.wasted_tokens for record in records)
    span.set_attribute("gen_ai.usage.output_tokens", sampled)
    span.set_attributes(_turn_attributes(records[0]))
    for record in records:
        for call in record.calls:
            span.add_event(_DECISION_EVENT, _decision(call), timestamp=asked.ended_at)


def _turn_attributes(record: TurnRecord) -> dict[str, AttributeValue]:
    """Of the first choice, where a request has several."""
    found: dict[str, AttributeValue] = {
        "entrogate.turn_id": record.turn_id,
        "entrogate.weight_version": record.weight_version,
        "entrogate.estimator": record.capture.estimator,
        "entrogate.wasted_tokens": record.wasted_tokens,
        "entrogate.replayed": record.replayed,
        **_entropy(record.segment),
    }
    if record.capture_gap is not None:
        found["entrogate.capture_gap"] = record.capture_gap
    change = record.change
    if change is not None and change.delta is not None:
        found["entrogate.entropy_change.nats"] = change.delta.midpoint
    if change is not None and change.reduced is not None:
        found["entrogate.entropy_change.reduced"] = change.reduced
    return found


def _decision(call: CallRecord) -> dict[str, AttributeValue]:
    decision = call.decision
    return {
        "gen_ai.tool.name": call.name,
        "gen_ai.tool.call.id": call.call_id,
        "entrogate.decision.action": decision.action.value,
        "entrogate.decision.applied": decision.applied.value,
        "entrogate.decision.reason": decision.reason,
        "entrogate.decision.propensity": decision.propensity,
        **_entropy(call.features.segment),
    }


def _entropy(segment: SegmentStats | None) -> dict[str, Any]:
    """Mean token entropy of the reasoning before an answer or a call."""
    return {} if segment is None else {"entrogate.entropy.nats": segment.mean.midpoint}


def _fail(span: trace.Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(trace.StatusCode.ERROR)

"""What Prometheus sees, all with the prefix ``entrogate_``; no label that grows without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from entrogate import __version__
from entrogate.observe.calibration import CalibrationMetrics
from entrogate.observe.fuses import FuseMetrics
from entrogate.observe.labels import OTHER, BoundedLabel
from entrogate.observe.shadows import ShadowMetrics
from entrogate.types import CallRecord, EntropyChange, Mode, TurnRecord

_M = TypeVar("_M", Counter, Gauge, Histogram)

MAX_TOOLS = 64
MAX_KINDS = 64
MAX_VERSIONS = 64
_ENTROPY_NATS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
_CHANGE_NATS = (-5.0, -3.0, -2.0, -1.0, -0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0)
_FAST_SECONDS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_ANSWER_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
# Kinds that are there from the start with 0, so that Prometheus sees the first fault as a rise.
_UPSTREAM_KINDS = (
    "UpstreamUnavailable",
    "UpstreamTimeout",
    "UpstreamProtocol",
    "UpstreamStatus",  # it answered with 500 or above
)
_STORE_KINDS = ("commit", "link", "lost")
_RELOADS = ("changed", "failed")
SEVERAL = "several"
_SIGN = {True: "reduced", False: "raised", None: "unknown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """A policy, and what it gets of the trajectories that begin, in [0, 1]."""

    arm: str  # main or trial
    name: str
    version: str
    mode: Mode
    share: float


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made: list[tuple[Counter | Gauge | Histogram, Sequence[str]]] = []
        self._tool = BoundedLabel(MAX_TOOLS)
        self._route = BoundedLabel(MAX_KINDS)
        self._kind = BoundedLabel(MAX_KINDS)
        self._gap = BoundedLabel(MAX_KINDS)
        self._version = BoundedLabel(MAX_VERSIONS)
        self._policy_version = BoundedLabel(MAX_VERSIONS)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._gauge("build_info", "Always 1: which Entrogate this is.", "version").labels(
            __version__
        ).set(1)
        self._turn_metrics()
        self._server_metrics()
        self._policy_metrics()
        self._request_metrics()
        self.shadows = ShadowMetrics(self._counter, self._gauge)
        self.calibration = CalibrationMetrics(self._gauge, self._counter)
        self.fuses = FuseMetrics(self._gauge, self._tool)

    def _turn_metrics(self) -> None:
        self._turns = self._counter("turns", "Assistant turns recorded.", "mode")
        self._weights = self._counter(
            "weight_turns", "Assistant turns recorded, by the weights that answered.", "version"
        )
        self._calls = self._counter(
            "tool_calls", "Tool calls proposed, by what was done.", "tool", "decision", "reason"
        )
        self._gaps = self._counter(
            "capture_gaps", "Turns whose tokens or log-probs are incomplete.", "reason"
        )
        self._null_labels = self._counter(
            "null_labels", "Calls whose entropy change has an unknown sign.", "reason"
        )
        self._suppressed_tokens = self._counter(
            "suppressed_tokens", "Tokens sampled for suppressed calls and thrown away."
        )
        self._replays = self._counter(
            "replayed_turns", "Turns that ended in a replay and that no client saw."
        )
        self._segment = self._histogram(
            "segment_entropy_nats", "Mean token entropy of a segment.", _ENTROPY_NATS, "estimator"
        )
        self._change = self._histogram(
            "entropy_change_nats", "Entropy change brought by a call.", _CHANGE_NATS, "sign"
        )
        self._tool_changes = self._counter(
            "tool_entropy_changes", "Entropy changes, by the tool that was called.", "tool", "sign"
        )
        self._tool_nats = self._counter(
            "tool_entropy_nats",
            "Sizes of the entropy changes whose sign is known, added up.",
            "tool",
            "sign",
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of recorded turns.")
        self._sampled_tokens = self._counter("sampled_tokens", "Sampled tokens of recorded turns.")
        self._feedback = self._counter("feedback", "Outcomes that clients reported.")

    def _server_metrics(self) -> None:
        self._gate_seconds = self._histogram(
            "gate_overhead_seconds", "Time of one turn's decision.", _FAST_SECONDS
        )
        self._gateway_seconds = self._histogram(
            "gateway_overhead_seconds", "Time added to the first token.", _FAST_SECONDS
        )
        self._commit_seconds = self._histogram(
            "store_commit_seconds", "Time of one group commit.", _FAST_SECONDS
        )
        self._upstream_errors = self._counter(
            "upstream_errors", "Failures of the model server.", "kind"
        )
        self._store_errors = self._counter(
            "store_errors",
            "Records that could not be kept; kind link: requests that could not be linked.",
            "kind",
        )
        self._gate_faults = self._counter("gate_faults", "Faults in the gate; calls went through.")
        self._export_failures = self._counter(
            "export_failures", "Times that the export beside the server died."
        )
        self._export_progress = self._gauge(
            "export_progress_timestamp_seconds", "When the export beside the server last got on."
        )
        self._malformed_captures = self._counter(
            "capture_malformed", "Messages of the capture channel that no engine sends; left out."
        )
        self._lost_spans = self._counter("lost_spans", "Spans of traces that no collector took.")
        self._queue = self._gauge("store_queue_depth", "Turns that wait for their commit.")
        self._deferred = self._gauge(
            "store_deferred", "Writes that wait in memory for a database that is away or full."
        )
        self._queue_limit = self._gauge(
            "store_queue_limit", "Turns that may wait; beyond it they are not kept."
        )
        self._gauge("tasks", "Tasks of the event loop.").set_function(_count_tasks)
        self._upstream = self._gauge(
            "upstream_info", "Always 1: what answers behind this gateway.", "model", "estimator"
        )
        for kind in _UPSTREAM_KINDS:
            self._upstream_errors.labels(self._kind(kind))
        for kind in _STORE_KINDS:
            self._store_errors.labels(self._kind(kind))

    def _policy_metrics(self) -> None:
        self._policy = self._gauge(
            "policy_info", "Always 1: a policy in force.", "policy", "version", "mode", "arm"
        )
        self._policy_share = self._gauge(
            "policy_share",
            "Share of new trajectories that a policy decides.",
            "policy",
            "version",
            "arm",
        )
        self._policy_reloads = self._counter(
            "policy_reloads", "Reloads of the policies, by result.", "result"
        )
        self._policy_problem = self._gauge(
            "policy_reload_failed", "1 while the policy files cannot be put in force, else 0."
        )
        self._policy_turns = self._counter(
            "policy_turns", "Assistant turns, by the policy that decided.", "policy", "version"
        )
        self._policy_calls = self._counter(
            "policy_calls",
            "Tool calls proposed, by the policy that decided and what was done.",
            "policy",
            "version",
            "decision",
        )
        for result in _RELOADS:
            self._policy_reloads.labels(result)

    def _request_metrics(self) -> None:
        self._refusals = self._counter(
            "requests_refused", "Requests refused before they were looked at.", "reason"
        )
        self._requests = self._counter("requests", "Requests answered.", "route", "status")
        self._in_flight = self._gauge("requests_in_flight", "Requests being answered.", "route")
        self._request_seconds = self._histogram(
            "request_seconds", "Time from a request to the end of its answer.", _ANSWER_SECONDS
        )
        self._first_event = self._histogram(
            "time_to_first_event_seconds",
            "Time from a streamed request to the first event of its answer.",
            _ANSWER_SECONDS,
        )

    def record_turn(
        self, record: TurnRecord, *, mode: Mode, policy: str = "", called: Collection[str] = ()
    ) -> None:
        """Count a turn and everything in it, once, when it is recorded.

        ``policy`` is the name of the one that decided; ``called`` are the tools whose results this
        turn is the first to see.
        """
        version = self._policy_version(record.policy_version)
        by = (policy if version != OTHER else OTHER, version)
        self._policy_turns.labels(*by).inc()
        for call in record.calls:
            self._policy_calls.labels(*by, call.decision.applied.value).inc()
        self._turns.labels(mode.value).inc()
        self._prompt_tokens.inc(len(record.prompt_token_ids))
        self._sampled_tokens.inc(len(record.capture))
        self._weights.labels(self._version(record.weight_version)).inc()
        for call in record.calls:
            self._record_call(call)
        if record.capture_gap is not None:
            self._gaps.labels(self._gap(record.capture_gap)).inc()
        if record.wasted_tokens:
            self._suppressed_tokens.inc(record.wasted_tokens)
        if record.replayed:
            self._replays.inc()
        if record.segment is not None:
            estimator = record.segment.estimator.value
            self._segment.labels(estimator).observe(record.segment.mean.midpoint)
        if record.change is not None:
            self._record_change(record.change, set(called))

    def _record_change(self, change: EntropyChange, called: set[str]) -> None:
        sign = _SIGN[change.reduced]
        if change.delta is not None:
            self._change.labels(sign).observe(change.delta.midpoint)
        if change.null_reason is not None:
            self._null_labels.labels(change.null_reason).inc()
        if called:
            tool = self._tool(called.pop()) if len(called) == 1 else SEVERAL
            self._tool_changes.labels(tool, sign).inc()
            if change.delta is not None and change.reduced is not None:
                self._tool_nats.labels(tool, sign).inc(abs(change.delta.midpoint))

    def _record_call(self, call: CallRecord) -> None:
        if not call.likely:
            return
        decision = call.decision
        self._calls.labels(self._tool(call.name), decision.applied.value, decision.reason).inc()

    def record_request(self, route: str, status: int) -> None:
        """One answered request; ``route`` is the route's pattern, not the path."""
        self._requests.labels(self._route(route), str(status)).inc()

    def observe_answer(self, seconds: float) -> None:
        """Time from a request to the end of its answer."""
        self._request_seconds.observe(seconds)

    def observe_first_event(self, seconds: float) -> None:
        """Time from a streamed request to the first event of its answer."""
        self._first_event.observe(seconds)

    def record_feedback(self) -> None:
        """One outcome that a client reported."""
        self._feedback.inc()

    @contextmanager
    def in_flight(self, route: str) -> Generator[None]:
        """Count a request as in flight while the block runs."""
        gauge = self._in_flight.labels(self._route(route))
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def record_upstream_error(self, kind: str) -> None:
        """One failure of the model server: unavailable, timeout, protocol, …"""
        self._upstream_errors.labels(self._kind(kind)).inc()

    def record_store_error(self, kind: str, count: int = 1) -> None:
        """``count`` records that could not be kept, or (``link``) requests not looked up."""
        self._store_errors.labels(self._kind(kind)).inc(count)

    def record_gate_fault(self) -> None:
        """One fault inside the gate: the call went through."""
        self._gate_faults.inc()

    def record_export_failure(self) -> None:
        """The export's process died; it is started again."""
        self._export_failures.inc()

    def record_export_progress(self) -> None:
        """The export said what it wrote, which may be nothing."""
        self._export_progress.set_to_current_time()

    def record_malformed_capture(self) -> None:
        """Count a message of the capture channel that was not what an engine sends."""
        self._malformed_captures.inc()

    def record_lost_spans(self, spans: int) -> None:
        """The collector did not take them."""
        self._lost_spans.inc(spans)

    def observe_gate(self, seconds: float) -> None:
        """Time that one turn's decision took."""
        self._gate_seconds.observe(seconds)

    def observe_gateway(self, seconds: float) -> None:
        """Time that the gateway added to the first token of a request."""
        self._gateway_seconds.observe(seconds)

    def observe_commit(self, seconds: float) -> None:
        """Time that one group commit took."""
        self._commit_seconds.observe(seconds)

    def record_refusal(self, reason: str) -> None:
        """A request that access control answered; ``reason`` is the code of the error."""
        self._refusals.labels(self._kind(reason)).inc()

    def watch_store_queue(
        self, depth: Callable[[], int], deferred: Callable[[], int], *, limit: int
    ) -> None:
        """Read the depth of the queue whenever Prometheus asks."""
        self._queue.set_function(depth)
        self._deferred.set_function(deferred)
        self._queue_limit.set(limit)

    def set_policies(self, in_force: Sequence[PolicyInForce]) -> None:
        """The policies in force from now on."""
        self._policy.clear()
        self._policy_share.clear()
        for each in in_force:
            self._policy.labels(each.name, each.version, each.mode.value, each.arm).set(1)
            self._policy_share.labels(each.name, each.version, each.arm).set(each.share)

    def record_policy_reload(self, result: str) -> None:
        """Other policies are in force (``changed``), or could not be (``failed``)."""
        self._policy_reloads.labels(result).inc()

    def set_policy_problem(self, *, failed: bool) -> None:
        """Whether the policy files are something that cannot be put in force."""
        self._policy_problem.set(failed)

    def set_upstream(self, model: str, estimator: str) -> None:
        """What the upstream serves, and how its entropy is measured."""
        self._upstream.clear()
        self._upstream.labels(model, estimator).set(1)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body and the content type of ``/metrics`` for the request's ``Accept`` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def describe(self) -> Iterator[tuple[Metric, Sequence[str]]]:
        """Every metric of ours with the names of its labels, in the order they were made."""
        for collector, labels in self._made:
            (family,) = collector.describe()
            yield family, labels

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._keep(Counter(f"entrogate_{name}_total", text, labels, registry=None), labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._keep(Gauge(f"entrogate_{name}", text, labels, registry=None), labels)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        made = Histogram(f"entrogate_{name}", text, labels, buckets=buckets, registry=None)
        return self._keep(made, labels)

    def _keep(self, made: _M, labels: Sequence[str]) -> _M:
        self.registry.register(made)
        self._made.append((made, labels))
        return made


def _count_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # not asked by the server
        return 0

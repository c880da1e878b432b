"""OpenTelemetry traces: where spans go, and the span of each HTTP request.

Needs the extra `otel`, and is imported only where an endpoint is named. Nothing here is global: the
process may have a tracer of its own. What an inference span holds is said in `turn.tracing`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from entrogate import __version__

_STOP_SECONDS = 3.0
_TRACED = "/v1/"
_log = logging.getLogger("entrogate.tracing")


class Tracing:
    """Makes spans and sends them in the background.

    The variables of the OpenTelemetry SDK hold: ``OTEL_SERVICE_NAME``, ``OTEL_TRACES_SAMPLER``,
    ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_BSP_MAX_QUEUE_SIZE`` and so on. ``on_lost`` is told the
    number of spans that the collector at ``url`` did not take; no request waits for it.
    """

    def __init__(self, url: str, *, on_lost: Callable[[int], None]) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `_Watched` says it once
        named = {"service.name": "entrogate", "service.version": __version__}
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = _Watched(OTLPSpanExporter(url), on_lost)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self._provider.get_tracer("entrogate", __version__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send what is left, unless the collector takes too long over it."""
        # The SDK's own limit is 30 s, and a thread that is no daemon would hold up the exit.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, _STOP_SECONDS)

    def extract(self, headers: Mapping[str, str]) -> Context:
        """Where the trace of a request begins: at the client's span if it sent one."""
        return self._propagator.extract(headers, Context())

    def inject(self, headers: dict[str, str], span: trace.Span | None = None) -> None:
        """Put ``traceparent`` of ``span``, else of the span of this request, into ``headers``."""
        context = None if span is None else trace.set_span_in_context(span)
        self._propagator.inject(headers, context)


class _Watched(SpanExporter):
    """Counts what is not taken, and says once that it begins and once that it ends."""

    def __init__(self, exporter: OTLPSpanExporter, on_lost: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._on_lost = on_lost
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001  many versions of the SDK raise errors of requests here
            result = SpanExportResult.FAILURE
        is_away = result is not SpanExportResult.SUCCESS
        if is_away:
            self._on_lost(len(spans))
        if is_away is not self._is_away:
            self._is_away = is_away
            _log.warning("traces.%s", "not_taken: spans are lost" if is_away else "taken_again")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class TracedRequests:
    """ASGI middleware: one SERVER span for each request of the API, by the conventions for HTTP.

    Probes, metrics and the viewer have none.
    """

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an API request inside a span that ends with its answer; everything else passes."""
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        method: str = scope["method"]
        span = self._tracing.tracer.start_span(
            method,
            context=self._tracing.extract(Headers(scope=scope)),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": scope["path"]},
        )
        outcome = _Outcome(send)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self._app(scope, receive, outcome.send)
        except Exception as error:
            outcome.error = type(error).__name__
            raise
        finally:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            outcome.describe(span)
            span.end()


class _Outcome:
    """What became of a request, seen from the messages that go to the server."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status: int | None = None
        self._is_whole = False
        self.error: str | None = None

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif not message.get("more_body", False):
            self._is_whole = True

    def describe(self, span: trace.Span) -> None:
        if self._status is not None:
            span.set_attribute("http.response.status_code", self._status)
        error = self.error
        if error is None and self._status is not None and self._status >= 500:
            error = str(self._status)
        if error is None and not self._is_whole:
            error = "abandoned"
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(trace.StatusCode.ERROR)

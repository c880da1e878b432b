"""An OpenTelemetry collector for the tests: rotel, and behind it a sink for what it sends on.

A collector decodes what it is sent and encodes it anew for the next one, so what arrives in the
sink is what a collector understood.
"""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from entrogate_lab.bench.processes import free_port

KINDS = {Span.SPAN_KIND_SERVER: "server", Span.SPAN_KIND_CLIENT: "client"}


def _agent() -> Path | None:
    found = find_spec("rotel")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "rotel-agent"


AGENT = _agent()
_REQUIRED = os.environ.get("ENTROGATE_REQUIRE_COLLECTOR") == "1"


def go_without() -> NoReturn:
    """There is no collector: the test is skipped, or fails if it must run."""
    (pytest.fail if _REQUIRED else pytest.skip)("no collector: install the extra collector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A span that came through the collector."""

    name: str
    kind: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]


@dataclass(slots=True, kw_only=True)
class Collector:
    """``endpoint``: where a gateway sends its traces; ``raw``: the bytes that came out."""

    endpoint: str
    raw: list[bytes] = field(default_factory=list[bytes])

    def spans(self) -> list[Seen]:
        """By their start."""
        found: list[Seen] = []
        for data in self.raw:
            for part in ExportTraceServiceRequest.FromString(data).resource_spans:
                resource = _plain(part.resource.attributes)
                for scope in part.scope_spans:
                    found += [_seen(span, resource.get("service.name", "")) for span in scope.spans]
        return sorted(found, key=lambda span: span.start)


@contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    """Where there is none, the test is skipped, or fails if ENTROGATE_REQUIRE_COLLECTOR is 1."""
    if AGENT is None:
        go_without()
    with ExitStack() as stack:
        running = Collector(endpoint=f"http://127.0.0.1:{free_port()}")
        sink = stack.enter_context(_sink(running.raw))
        command = [AGENT, "start", "--otlp-http-endpoint", running.endpoint.removeprefix("http://")]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}", "--batch-timeout", "50ms"]
        command += ["--exporter", "otlp", "--otlp-exporter-endpoint", sink]
        command += ["--otlp-exporter-protocol", "http"]
        log = stack.enter_context((folder / "collector.log").open("wb"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(process.kill)
        _wait_for(running.endpoint, process)
        yield running


def _wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("the collector did not start")


@contextmanager
def _sink(raw: list[bytes]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_packed = self.headers.get("content-encoding") == "gzip"
            raw.append(gzip.decompress(body) if is_packed else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _seen(span: Span, service: str) -> Seen:
    return Seen(
        name=span.name,
        kind=KINDS.get(span.kind, "other"),
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status.code == 2,
        attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
    )


def _plain(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None

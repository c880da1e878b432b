"""Traces of turns, as a real collector understands them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from entrogate.errors import ConfigError
from entrogate.settings import StoreSettings, TracingSettings
from entrogate.store.database import Database
from entrogate.turn.tracing import TurnSpans
from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.collector import Collector, Seen, collector
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    JSON,
    Running,
    ask,
    calling,
    error_of,
    eventually,
    follow_up,
    message_of,
    policy_file,
    running,
    settings,
)

SECRET = "a-static-secret-1"
CLIENT_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
SUPPRESS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}
Traced = Callable[..., Awaitable[Running]]


@pytest.fixture
def otel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with collector(tmp_path) as running:
        yield running


@pytest.fixture
def traced(start: Start, otel: Collector) -> Traced:
    async def begin(**options: Any) -> Running:
        return await start(tracing={"otlp_endpoint": otel.endpoint}, **options)

    return begin


async def arrived(otel: Collector, n: int) -> list[Seen]:
    await eventually(lambda: len(otel.spans()) >= n)
    await asyncio.sleep(0.3)  # and no more than these
    spans = otel.spans()
    assert len(spans) == n, [span.name for span in spans]
    return spans


def tree(spans: list[Seen]) -> tuple[Seen, list[Seen]]:
    """The client's request, and the requests to vLLM below it."""
    (server,) = [span for span in spans if span.kind == "server"]
    asked = [span for span in spans if span.kind == "client"]
    assert all(span.parent_id == server.span_id for span in asked)
    assert {span.trace_id for span in spans} == {server.trace_id}
    return server, asked


async def test_a_fault_of_tracing_does_not_hide_why_the_server_gave_no_answer(
    upstream: ScriptedUpstream, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("no span today")

    gateway = await traced()
    assert (await gateway.chat(ask({"content": "Hi."}))).status_code == 200
    monkeypatch.setattr(TurnSpans, "request", fail)
    assert (await gateway.chat(ask({"content": "Hi."}))).status_code == 200
    await upstream.aclose()
    gone = await gateway.chat(ask({"content": "Hi."}))
    assert error_of(gone, 502)["code"] == "upstream_unavailable"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn(
    upstream: ScriptedUpstream, traced: Traced, otel: Collector, stream: bool
) -> None:
    gateway = await traced()
    body = ask(calling("Ada"), temperature=0.5, max_tokens=99, stream=stream)
    answer = await gateway.chat(body, x_request_id="r-1", traceparent=TRACEPARENT)
    (turn,) = (await gateway.trajectory(answer))["turns"]

    spans = [span for span in await arrived(otel, 3) if "trajectories" not in span.name]
    server, (asked,) = tree(spans)
    assert (server.trace_id, server.parent_id) == (CLIENT_TRACE, CLIENT_SPAN)
    assert server.name == f"POST {CHAT}"
    assert server.service == "entrogate"
    assert not server.failed
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["http.route"] == CHAT
    assert server.attributes["entrogate.request_id"] == "r-1"
    assert server.attributes["entrogate.mode"] == "observe"
    assert server.start <= asked.start <= asked.end <= server.end

    assert upstream.stats.traceparents[-1] == f"00-{CLIENT_TRACE}-{asked.span_id}-01"
    assert asked.name == "chat scripted"
    found = asked.attributes
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.provider.name"] == "vllm"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "scripted"
    assert found["gen_ai.request.temperature"] == 0.5
    assert found["gen_ai.request.max_tokens"] == 99
    assert found["gen_ai.response.id"] == turn["response_id"]
    assert found["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert found["gen_ai.usage.input_tokens"] == turn["n_prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == turn["n_tokens"]
    assert found["gen_ai.conversation.id"] == answer.headers["x-entrogate-trajectory-id"]
    assert found["server.address"] == "127.0.0.1"
    assert found["server.port"] == int(upstream.url.rpartition(":")[2])
    assert found["entrogate.turn_id"] == turn["id"]
    mean = turn["segment"]["mean"]
    expected = (mean["lower"] + mean["upper"]) / 2
    assert found["entrogate.entropy.nats"] == pytest.approx(expected)

    ((name, event),) = asked.events
    decision = turn["calls"][0]["decision"]
    assert name == "entrogate.decision"
    assert event["gen_ai.tool.name"] == "lookup"
    assert event["gen_ai.tool.call.id"] == turn["calls"][0]["id"]
    assert event["entrogate.decision.applied"] == "allow"
    assert event["entrogate.decision.action"] == decision["action"]
    assert event["entrogate.decision.reason"] == decision["reason"]
    assert event["entrogate.decision.propensity"] == 1.0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_suppressed_call(
    traced: Traced, otel: Collector, folder: Path, stream: bool
) -> None:
    """The request that goes on without the call is a span of its own."""
    gateway = await traced(policy=policy_file(folder, **SUPPRESS))
    await gateway.chat(ask(calling("Ada", masked="It is Berlin."), stream=stream))
    _, (first, resumed) = tree(await arrived(otel, 3))
    assert [first.name, resumed.name] == ["chat scripted", "text_completion scripted"]
    assert first.events[0][1]["entrogate.decision.applied"] == "suppress"
    assert first.end <= resumed.start
    assert first.attributes["entrogate.wasted_tokens"] > 0
    assert not first.failed
    assert not resumed.failed


@pytest.mark.parametrize("stream", [True, False])
async def test_a_replayed_call(traced: Traced, otel: Collector, folder: Path, stream: bool) -> None:
    """Each leg is a span; the label of the call before the turn is there."""
    gateway = await traced(policy=policy_file(folder, **REPLAY))
    body = ask(calling("Ada"), calling("Ada"), {"content": "Berlin."}, stream=False)
    first = await gateway.chat(body)
    await arrived(otel, 2)
    second = follow_up(body, message_of(first), "lives in Berlin", stream=stream)
    await gateway.chat(second)
    spans = (await arrived(otel, 5))[2:]
    _, (repeated, last) = tree(spans)
    assert repeated.attributes["entrogate.replayed"] is True
    assert last.attributes["entrogate.replayed"] is False
    assert repeated.events[0][1]["entrogate.decision.reason"] == "repeat"
    assert "entrogate.entropy_change.nats" in repeated.attributes


async def test_no_texts_and_no_keys(traced: Traced, otel: Collector, folder: Path) -> None:
    gateway = await traced(policy=policy_file(folder, **SUPPRESS), access={"key": SECRET})
    gateway.client.headers["authorization"] = f"Bearer {SECRET}"
    body = ask(calling("Zanzibar", masked="Xylophone."), text="Quetzal?")
    assert "Xylophone" in (await gateway.chat(body)).text
    await arrived(otel, 3)
    everything = b"".join(otel.raw)
    assert b"lookup" in everything
    for text in (b"Quetzal", b"Zanzibar", b"Xylophone", b"I have to think", SECRET.encode()):
        assert text not in everything


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_refusals_and_faults(
    upstream: ScriptedUpstream, traced: Traced, otel: Collector, stream: bool
) -> None:
    gateway = await traced()
    assert (await gateway.client.post(CHAT, content=b"{", headers=JSON)).status_code == 400
    await gateway.client.get("/health")
    (refused,) = await arrived(otel, 1)
    assert refused.attributes["http.response.status_code"] == 400
    assert not refused.failed  # by the conventions the client's fault is no error of the server's

    await gateway.chat(ask({"content": "Hi."}))
    await arrived(otel, 3)
    await upstream.aclose()
    answer = await gateway.chat(ask({"content": "Hi."}, stream=stream))
    assert answer.status_code == 502
    server, (asked,) = tree((await arrived(otel, 5))[-2:])
    assert server.failed
    assert server.attributes["error.type"] == "502"
    assert asked.failed
    assert asked.attributes["error.type"] == "UpstreamUnavailable"


async def test_a_client_that_leaves(
    upstream: ScriptedUpstream, traced: Traced, otel: Collector
) -> None:
    """What it got is said although the turn is recorded after it left."""
    gateway = await traced()
    body = ask({"content": "one two three four five six seven eight", "delay": 0.2}, stream=True)
    async with gateway.client.stream("POST", CHAT, json=body) as answer:
        await anext(answer.aiter_bytes())
    server, (asked,) = tree(await arrived(otel, 2))
    assert server.failed
    assert server.attributes["error.type"] == "abandoned"
    assert asked.attributes["error.type"] == "broken_off"
    assert asked.attributes["gen_ai.conversation.id"] == answer.headers["x-entrogate-trajectory-id"]


async def test_what_crosses_unchanged(
    upstream: ScriptedUpstream, traced: Traced, otel: Collector
) -> None:
    gateway = await traced()
    body = {"model": "scripted", "prompt": "Hi", "max_tokens": 3}
    await gateway.client.post("/v1/completions", json=body)
    (server,) = await arrived(otel, 1)
    assert server.name == "POST /v1/completions"
    sent = upstream.stats.traceparents[-1] or ""
    assert sent.startswith(f"00-{server.trace_id}-{server.span_id}-")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_trace_crosses_a_gateway_that_has_none(
    upstream: ScriptedUpstream, gateway: Running, path: str
) -> None:
    body = ask({"content": "Hi."}) if path == CHAT else {"model": "scripted", "prompt": "Hi"}
    await gateway.client.post(path, json=body, headers={"traceparent": TRACEPARENT})
    assert upstream.stats.traceparents[-1] == TRACEPARENT


async def test_a_collector_that_is_away(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Turns go on, what is lost is counted, and the log says it once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    endpoint = f"http://127.0.0.1:{free_port()}"
    gateway = await start(tracing={"otlp_endpoint": endpoint})
    lost = 0.0
    for _ in range(3):
        assert (await gateway.chat(ask({"content": "Hi."}))).status_code == 200
        async with asyncio.timeout(30):
            while (now := await gateway.metric("entrogate_lost_spans_total")) == lost:
                await asyncio.sleep(0.05)
        lost = now
    assert lost >= 3
    said = [r.message for r in caplog.records if "tracing" in r.name or "opentelemetry" in r.name]
    assert said == ["traces.not_taken: spans are lost"]


async def test_a_stop_sends_what_is_left(
    upstream: ScriptedUpstream, otel: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    chosen = settings(upstream.url, tmp_path, tracing={"otlp_endpoint": otel.endpoint})
    async with running(chosen) as gateway:
        await gateway.chat(ask({"content": "Hi."}))
        assert otel.spans() == []
    await arrived(otel, 2)


def test_an_endpoint_has_to_be_a_url() -> None:
    for wrong in ("collector:4318", "grpc://collector:4317", "http://", ""):
        with pytest.raises(ValidationError, match="want the URL of a collector"):
            TracingSettings(otlp_endpoint=wrong)
    for endpoint in ("http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"):
        assert TracingSettings(otlp_endpoint=endpoint).traces_url == "http://c:4318/v1/traces"
    assert TracingSettings().traces_url is None


async def test_httpx_is_not_what_sends_traceparent() -> None:
    """Or the tests above would prove nothing."""
    async with httpx.AsyncClient() as client:
        assert "traceparent" not in client.build_request("POST", "http://x").headers


async def test_without_the_extra_it_is_said_in_one_line(
    start: Start, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "entrogate.observe.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install '.*\[otel\]'"):
        await start(tracing={"otlp_endpoint": "http://127.0.0.1:4318"})
    with closing(Database(StoreSettings(url=store_url), alone=True)):
        pass  # nobody holds it


def test_nothing_of_it_is_loaded_where_it_is_off() -> None:
    """Nothing of ours: newer versions of FastAPI load `opentelemetry-api` by themselves."""
    program = "import sys, entrogate.serve.cli; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr

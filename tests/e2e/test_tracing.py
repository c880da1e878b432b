"""One trace from the client through the gateway into a managed vLLM, as a collector has it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from entrogate.bench.processes import child, free_port
from tests.collector import Seen, collector
from tests.e2e.conftest import chat_body, tasks

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_spans_of_gateway_and_vllm_are_one_trace(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with (
        collector(tmp_path) as otel,
        child(
            ("entrogate", "serve", "--model", "almanac", "--port", url.rpartition(":")[2]),
            url=url,
            ready="/ready",
            log=tmp_path / "gateway.log",
            environment={
                "ENTROGATE_STORE__URL": f"sqlite:///{tmp_path}/store.db",
                "ENTROGATE_TRACING__OTLP_ENDPOINT": otel.endpoint,
            },
            timeout_seconds=400,
        ),
    ):
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json=chat_body(tasks(1)[0]),
            headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
            timeout=120,
        )
        usage = answer.json()["usage"]

        def found() -> dict[str, Seen]:
            return {
                f"{span.service} {span.kind}": span
                for span in otel.spans()
                if span.trace_id == TRACE
            }

        deadline = time.monotonic() + 60
        while len(found()) < 3:
            assert time.monotonic() < deadline, found()
            time.sleep(0.2)
        spans = found()
    request, asked = spans["entrogate server"], spans["entrogate client"]
    model = spans["vllm server"]
    assert request.parent_id == SPAN
    assert asked.parent_id == request.span_id
    assert model.parent_id == asked.span_id
    assert asked.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert asked.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert model.attributes["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert model.attributes["gen_ai.usage.completion_tokens"] == usage["completion_tokens"]
    assert asked.attributes["entrogate.estimator"] == "exact"

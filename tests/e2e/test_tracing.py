"""One trace from the client through the gateway into a real vLLM, as a collector has it."""

from __future__ import annotations

import time

import pytest

from tests.collector import Collector, Seen, go_without
from tests.e2e.conftest import StartGateway, chat_body, tasks
from tests.integration.harness import CHAT

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("estimator", ["exact"], indirect=True)
def test_spans_of_gateway_and_vllm_are_one_trace(
    start: StartGateway, traces: Collector | None
) -> None:
    if traces is None:
        go_without()
    gateway = start(tracing__otlp_endpoint=traces.endpoint)
    with gateway.client() as client:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        usage = client.post(CHAT, json=chat_body(tasks(1)[0]), headers=headers).json()["usage"]

    def found() -> dict[str, Seen]:
        spans = [span for span in traces.spans() if span.trace_id == TRACE]
        return {f"{span.service} {span.kind}": span for span in spans}

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

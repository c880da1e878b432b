"""What `/v1/responses` says is what the API's types allow, and no field of vLLM's is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.doors import RESPONSES, ask_responses, folded_response, streamed
from tests.integration.harness import Running, calling

STEPS: dict[str, dict[str, Any]] = {
    "text": {"content": "It is Berlin."},
    "reasoned": {"reasoning": "Let me think", "content": "It is Berlin."},
    "parallel calls": calling("Ada", "Bo", content="Let me see."),
}
LOGPROBS: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"content": "one two three four", "fault": "cut", "at": 2},
    "sse_error": {"content": "one two three four", "fault": "sse_error", "at": 2},
}
EVENTS = TypeAdapter[Any](ResponseStreamEvent)
# Of vLLM 0.32: `ResponsesResponse`, and the items of `build_response_output_items`.
FIELDS = {
    "id", "created_at", "incomplete_details", "instructions", "metadata", "model", "object",
    "output", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "background",
    "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt", "reasoning",
    "service_tier", "status", "text", "top_logprobs", "truncation", "usage", "user",
    "presence_penalty", "frequency_penalty", "kv_transfer_params", "ec_transfer_params",
    "input_messages", "output_messages",
}  # fmt: skip
ITEM_FIELDS = {
    "reasoning": {"id", "summary", "type", "content", "encrypted_content", "status"},
    "message": {"id", "content", "role", "status", "type", "phase"},
    "function_call": {
        "id", "call_id", "type", "status", "name", "namespace", "arguments", "async", "caller",
    },
}  # fmt: skip


def checked(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The last event, of a stream whose events are all of OpenAI's types."""
    for event in events:
        assert EVENTS.validate_python(event).type == event["type"]
    return events[-1]


@pytest.mark.parametrize("fields", [{}, LOGPROBS, {"max_output_tokens": 2}], ids=str)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_bodies_and_events_are_of_the_types_of_the_api(
    gateway: Running, step: dict[str, Any], fields: dict[str, Any]
) -> None:
    body = ask_responses(step, **fields)
    whole = (await gateway.client.post(RESPONSES, json=body)).json()
    last = checked((await streamed(gateway, RESPONSES, body))[1])
    for response in (whole, last["response"]):
        Response.model_validate(response)
        assert set(response) >= FIELDS
        assert all(tool["strict"] is None for tool in response["tools"])
        for item in response["output"]:
            assert set(item) >= ITEM_FIELDS[item["type"]]


@pytest.mark.parametrize("step", FAULTS.values(), ids=FAULTS)
async def test_a_failure_is_of_the_types_of_the_api(gateway: Running, step: dict[str, Any]) -> None:
    _, events = await streamed(gateway, RESPONSES, ask_responses(step, tools=False))
    assert checked(events)["type"] == "response.failed"
    Response.model_validate(events[-1]["response"])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_log_probs_are_those_of_the_text(gateway: Running, step: dict[str, Any]) -> None:
    body = ask_responses(step, **LOGPROBS)
    whole = (await gateway.client.post(RESPONSES, json=body)).json()
    _, events = await streamed(gateway, RESPONSES, body)
    folded = folded_response(events)
    for response in (whole, folded):
        assert response["top_logprobs"] == 2
        (part,) = (i["content"][0] for i in response["output"] if i["type"] == "message")
        spelled = b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode()
        assert spelled.strip() == part["text"].strip()
        assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
        assert all(token["logprob"] <= 0 for token in part["logprobs"])
    parts = [
        [i["content"] for i in response["output"] if i["type"] == "message"]
        for response in (whole, folded)
    ]
    assert parts[0] == parts[1]
    deltas = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    tokens = [token["token"] for delta in deltas for token in delta]
    assert tokens == [token["token"] for token in parts[0][0][0]["logprobs"]]


async def test_without_include_there_are_no_log_probs(gateway: Running) -> None:
    body = ask_responses(STEPS["text"], top_logprobs=2)
    response = (await gateway.client.post(RESPONSES, json=body)).json()
    assert response["top_logprobs"] is None
    assert response["output"][0]["content"][0]["logprobs"] == []


async def test_a_request_that_goes_on_keeps_the_rules_and_drops_the_instructions(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    body = ask_responses({"content": "One."}, {"content": "Two."})
    question = {"role": "user", "content": body["input"]}
    rules = {"role": "developer", "content": "RULES"}
    body = {**body, "input": [rules, question], "instructions": "BASE"}
    first = (await gateway.client.post(RESPONSES, json=body)).json()
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert sent[0] == {"role": "system", "content": "BASE\n\nRULES"}
    shown = (await gateway.client.get(f"{RESPONSES}/{first['id']}")).json()
    assert shown["instructions"] == "BASE"
    go_on = {**ask_responses(), "input": "And?", "previous_response_id": first["id"]}
    second = await gateway.client.post(RESPONSES, json={**go_on, "instructions": "OTHER"})
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert sent[0] == {"role": "system", "content": "OTHER\n\nRULES"}
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "user"]
    third = {**go_on, "previous_response_id": second.json()["id"]}
    assert (await gateway.client.post(RESPONSES, json=third)).status_code == 200
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert sent[0] == {"role": "system", "content": "RULES"}

"""What the tests of the doors share: their requests, and what their streams fold into."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from entrogate_lab.bench.script import script
from tests.integration.harness import TOOLS, Running, calling

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ANTHROPIC_TOOLS = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in TOOLS
]
STEPS: dict[str, dict[str, Any]] = {
    "text": {"content": "It is Berlin."},
    "reasoned": {"reasoning": "Let me think", "content": "It is Berlin."},
    "one call": calling("Ada", content="Let me see."),
    "parallel calls": calling("Ada", "Bo"),
    "nothing": {"content": ""},
}
RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]


def ask_messages(*steps: Any, tools: bool = True, **fields: Any) -> dict[str, Any]:
    """A Messages body whose answers are ``steps``."""
    body: dict[str, Any] = {
        "model": "scripted",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": f"Who? {script(*steps)}"}],
        **fields,
    }
    return {**body, "tools": ANTHROPIC_TOOLS} if tools else body


def ask_responses(*steps: Any, tools: bool = True, **fields: Any) -> dict[str, Any]:
    """A Responses body whose answers are ``steps``."""
    body: dict[str, Any] = {"model": "scripted", "input": f"Who? {script(*steps)}", **fields}
    return {**body, "tools": RESPONSES_TOOLS} if tools else body


def anthropic_client(gateway: Running) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0)


def openai_client(gateway: Running) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


async def streamed(
    gateway: Running, route: str, body: dict[str, Any], **headers: str
) -> tuple[httpx.Response, list[dict[str, Any]]]:
    """An answer and the events of its stream."""
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {**body, "stream": True}
    async with gateway.client.stream("POST", route, json=body, headers=dashed) as response:
        return response, events_of(await response.aread())


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each must be named after its type."""
    events: list[dict[str, Any]] = []
    for part in raw.decode().split("\n\n")[:-1]:
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def folded_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events of a Messages stream add up to, checked on the way."""
    assert [e["type"] for e in events[:2]] == ["message_start", "ping"]
    assert [e["type"] for e in events[-2:]] == ["message_delta", "message_stop"]
    message = events[0]["message"]
    open_index, arguments = None, ""
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert open_index is None
            open_index, arguments = event["index"], ""
            assert open_index == len(message["content"])
            message["content"].append(event["content_block"])
            continue
        assert event["index"] == open_index
        block = message["content"][open_index]
        if event["type"] == "content_block_stop":
            open_index = None
            if block["type"] == "tool_use":
                block["input"] = json.loads(arguments or "{}")
            continue
        delta = event["delta"]
        match delta["type"]:
            case "text_delta":
                block["text"] += delta["text"]
            case "thinking_delta":
                block["thinking"] += delta["thinking"]
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "input_json_delta":
                arguments += delta["partial_json"]
            case other:
                raise AssertionError(other)
    assert open_index is None
    last = events[-2]
    return {**message, **last["delta"], "usage": last["usage"]}


def folded_response(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that the deltas of a Responses stream add up to, checked on the way."""
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    output: list[dict[str, Any]] = []
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            output.append(event["item"])
            continue
        item = output[event["output_index"]]
        if kind == "output_item.done":
            item["status"] = event["item"]["status"]
            assert item == event["item"]
            continue
        assert event["item_id"] == item["id"]
        match kind:
            case "content_part.added":
                item["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                part = item["content"][event["content_index"]]
                part["text"] += event["delta"]
                if part["type"] == "output_text":
                    part["logprobs"] += event["logprobs"]
            case "refusal.delta":
                item["content"][event["content_index"]]["refusal"] += event["delta"]
            case "refusal.done":
                assert event["refusal"] == item["content"][event["content_index"]]["refusal"]
            case "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == item["content"][event["content_index"]]["text"]
            case "content_part.done":
                part = item["content"][event["content_index"]]
                whole = event["part"].get("logprobs", [])
                said = part.get("logprobs", [])
                assert [t["token"] for t in said] == [t["token"] for t in whole]
                part |= {"logprobs": whole} if whole else {}  # which have the bytes too
                assert event["part"] == part
            case "function_call_arguments.done":
                assert event["arguments"] == item["arguments"]
            case other:
                raise AssertionError(other)
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{response['status']}"
    assert response["output"] == output
    assert response["id"] == events[0]["response"]["id"]
    return response


def same_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from request to request: ids and times."""
    text = json.dumps(answer)
    text = re.sub(r'"(call_eg)[0-9a-f]+"', r'"\1"', text)
    text = re.sub(r'"((?:resp|msg|rs|fc)_chatcmpl-)[0-9A-Za-z-]+', r'"\1', text)
    return json.loads(re.sub(r'"(created_at|completed_at)": \d+', r'"\1": 0', text))

"""`/v1/responses` of the gateway against vLLM's own, field by field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from entrogate.wire.responses.items import repeated
from tests.e2e.conftest import NAME, StartGateway, chat_body, tasks

# Where we follow OpenAI's documentation and vLLM does not, or each server has its own values.
OWN_VALUES = {
    "id", "created_at", "call_id", "completed_at", "error", "store", "prompt_cache_key",
    "safety_identifier",
}  # fmt: skip
OPENAI: dict[str, list[tuple[Any, Any]]] = {  # field: what vLLM says, what we say
    "metadata": [(None, {})],
    "reasoning": [(None, repeated({}, logprobs=False)["reasoning"])],
    "text": [(None, repeated({}, logprobs=False)["text"])],
    "logprobs": [(None, [])],
    "tool_choice": [("none", "auto")],  # of a request without tools
    "status": [(None, "completed"), (None, "incomplete")],  # of reasoning
}


def bodies() -> dict[str, dict[str, Any]]:
    (task,) = tasks(1)
    chat = chat_body(task)
    head: dict[str, Any] = {
        "model": NAME,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_output_tokens": 400,
        "input": chat["messages"],
    }
    tools = [{"type": "function", **tool["function"]} for tool in chat["tools"]]
    logprobs = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    return {
        "tools": {**head, "tools": tools},
        "plain": head,
        "settings": {**head, "frequency_penalty": 0.5, "user": "u", "metadata": {"a": "b"}},
        "cut": {**head, "max_output_tokens": 3},
        "logprobs": {**head, **logprobs},
    }


def differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """What vLLM says and we do not, or say differently."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found: list[str] = []
        for name, value in theirs.items():
            place = f"{where}.{name}" if where else name
            if name not in ours:
                found.append(f"{place} is missing")
            elif name not in OWN_VALUES and (value, ours[name]) not in OPENAI.get(name, []):
                found += differences(value, ours[name], place)
        return found
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    close = isinstance(theirs, float) and isinstance(ours, float) and abs(theirs - ours) < 1e-4
    return [] if theirs == ours or close else [f"{where}: vLLM {theirs!r}, here {ours!r}"]


def answered(vllm: str, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What vLLM says, and what the gateway says."""
    with httpx.Client(timeout=300) as client:
        theirs = client.post(f"{vllm}/v1/responses", json=body).json()
        return theirs, client.post(f"{url}/v1/responses", json=body).json()


@pytest.mark.parametrize("name", ["tools", "plain", "settings", "cut"])
def test_a_response_is_what_vllm_says(vllm: str, start: StartGateway, name: str) -> None:
    assert differences(*answered(vllm, start().url, bodies()[name])) == []


def test_log_probs_are_vllms_of_the_text(vllm: str, start: StartGateway) -> None:
    """vLLM gives those of the reasoning too."""
    responses = answered(vllm, start().url, bodies()["logprobs"])
    theirs, ours = (
        [
            (token["token"], [top["token"] for top in token["top_logprobs"]], token["logprob"])
            for item in response["output"]
            if item["type"] == "message"
            for token in item["content"][0]["logprobs"]
        ]
        for response in responses
    )
    assert ours
    at = [token[:2] for token in theirs].index(ours[0][:2])
    assert [t[:2] for t in theirs[at : at + len(ours)]] == [t[:2] for t in ours]
    said = [t[2] for t in ours]
    assert [t[2] for t in theirs[at : at + len(ours)]] == pytest.approx(said, abs=1e-4)

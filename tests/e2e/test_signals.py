"""Every signal on a real vLLM: the engine decides as the gateway would, drafts begin the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate.gate import parse_policy
from entrogate.gate.features import from_json
from entrogate.gate.rules import call_value
from tests.e2e.conftest import NAME, StartGateway, chat_body, tasks
from tests.e2e.test_gate import ALWAYS, TOOLS, trajectory
from tests.integration.harness import CHAT, events, message_of_stream

TASKS = 16


def decided(gateway: Any, policy: dict[str, Any]) -> list[tuple[float, str]]:
    """The value that decided, and what was done, of the first turn of each task that called."""
    content = {"schema_version": 1, "name": "test", "mode": "enforce", **policy}
    signal = parse_policy(json.dumps(content), "test").signal
    found: list[tuple[float, str]] = []
    with gateway.client() as client:
        for task in tasks(TASKS):
            answer = client.post(CHAT, json=chat_body(task))
            assert answer.status_code == 200, answer.text
            (turn,) = trajectory(gateway, answer.headers["x-entrogate-trajectory-id"])["turns"]
            assert turn["capture_gap"] is None
            for call in turn["calls"]:
                value = call_value(signal, from_json(json.dumps(call["features"])))
                assert value is not None
                found.append((value, call["decision"]["applied"]))
    return found


@pytest.mark.parametrize(
    ("statistic", "certain_above"),
    [("entropy_sum", False), ("logprob_sum", True), ("p_tool_call", False)],
)
def test_a_threshold_in_the_middle_parts_the_calls(
    start: StartGateway, tmp_path: Path, statistic: str, certain_above: bool
) -> None:
    """With the plugin the calls on the certain side are never sampled, and on no other side."""
    watching = {"signal": {"statistic": statistic, "min_tokens": 1}, "tools": TOOLS}
    observed = decided(start(watching), watching)
    values = sorted(value for value, _ in observed)
    middle = values[len(values) // 2]
    parting = {**watching, "defaults": {"threshold": middle}}
    gateway = start(parting, store__url=f"sqlite:///{tmp_path}/parting.db")
    now = decided(gateway, parting)
    for value, applied in now:
        certain = value > middle if certain_above else value < middle
        assert applied == ("suppress" if certain else "allow")
    assert {applied for _, applied in now} == {"suppress", "allow"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_draft_and_the_rest_are_the_answer_without_the_call(
    vllm: str, start: StartGateway, stream: bool
) -> None:
    signal = {"statistic": "draft_entropy_max", "draft_tokens": 2}
    gateway = start({**ALWAYS, "signal": signal})
    compared = 0
    with gateway.client() as client, httpx.Client(timeout=300) as direct:
        for task in tasks(8):
            response = client.post(CHAT, json=chat_body(task, stream=stream))
            assert response.status_code == 200, response.text
            if stream:
                assert "error" not in events(response.content)[-1]
                message = message_of_stream(response.content)
            else:
                message = response.json()["choices"][0]["message"]
            name = response.headers["x-entrogate-trajectory-id"]
            (turn,) = trajectory(gateway, name)["turns"]
            if not turn["calls"]:
                continue
            (call,) = turn["calls"]
            assert call["decision"]["applied"] == "suppress"
            draft = from_json(json.dumps(call["features"])).draft
            assert draft is not None
            assert draft.n_tokens <= 2
            assert turn["capture_gap"] is None
            assert not message.get("tool_calls")
            tokens = turn["tokens"]
            kept = turn["altered"][0][0]
            marker = {"model": NAME, "prompt": "<tool_call>", "add_special_tokens": False}
            (call_id,) = client.post(f"{vllm}/tokenize", json=marker).json()["tokens"]
            body = {
                "model": NAME,
                "prompt": tokens["prompt_token_ids"] + tokens["token_ids"][:kept],
                "max_tokens": 128 - kept,
                "temperature": 0,
                "logit_bias": {str(call_id): -100},
                "return_token_ids": True,
            }
            again = direct.post(f"{vllm}/v1/completions", json=body).json()["choices"][0]
            assert tokens["token_ids"][kept:] == again["token_ids"]
            assert message["content"].endswith(again["text"].lstrip("\n"))
            compared += 1
    assert compared >= 4

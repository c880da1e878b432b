"""The gate on a real vLLM: suppression from the exact token ids, replay, and policy replay."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import pytest

from entrogate_lab.almanac.evaluate import evaluate
from tests.e2e.conftest import NAME, Served, StartGateway, chat_body, tasks
from tests.integration.harness import CHAT, events, message_of_stream

TOOLS: dict[str, None] = dict.fromkeys(("lookup", "calculator", "search", "read"))
ALWAYS = {"signal": {"min_tokens": 1}, "defaults": {"threshold": 1e6}, "tools": TOOLS}
REPLAY = {"defaults": {"on_repeat": "replay"}, "tools": TOOLS}


def trajectory(gateway: Served, name: str) -> dict[str, Any]:
    with gateway.client() as client:
        return client.get(f"/v1/trajectories/{name}", params={"tokens": "true"}).json()


@pytest.mark.parametrize("stream", [True, False])
def test_suppression(vllm: str, start: StartGateway, stream: bool) -> None:
    """Every call is suppressed: the client gets text, and it is what vLLM says to the same ids."""
    gateway = start(ALWAYS)
    suppressed = 0
    with gateway.client() as client, httpx.Client(timeout=300) as direct:
        for task in tasks(12):
            body = chat_body(task, stream=stream)
            response = client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
            if stream:
                assert "error" not in events(response.content)[-1]
                message = message_of_stream(response.content)
            else:
                message = response.json()["choices"][0]["message"]
            assert not message.get("tool_calls")
            assert "<tool_call>" not in (message.get("content") or "")
            name = response.headers["x-entrogate-trajectory-id"]
            (turn,) = trajectory(gateway, name)["turns"]
            if not turn["calls"]:
                continue
            assert {c["decision"]["applied"] for c in turn["calls"]} == {"suppress"}
            suppressed += 1
            tokens = turn["tokens"]
            kept = turn["altered"][0][0]
            call_id = client.post(
                f"{vllm}/tokenize",
                json={"model": NAME, "prompt": "<tool_call>", "add_special_tokens": False},
            ).json()["tokens"]
            again = direct.post(
                f"{vllm}/v1/completions",
                json={
                    "model": NAME,
                    "prompt": tokens["prompt_token_ids"] + tokens["token_ids"][:kept],
                    "max_tokens": 128 - kept,
                    "temperature": 0,
                    "logit_bias": {str(call_id[0]): -100},
                    "return_token_ids": True,
                },
            ).json()
            assert tokens["token_ids"][kept:] == again["choices"][0]["token_ids"]
    assert suppressed >= 6


def test_replay_and_policy_replay(start: StartGateway) -> None:
    """Repeated calls never reach the agent, and every stored decision follows again."""
    gateway = start(REPLAY, gate__allow_mode_header="true")
    result = asyncio.run(
        evaluate(
            f"{gateway.url}/v1",
            model=NAME,
            tasks=24,
            seed=3,
            modes=("observe", "enforce"),
            concurrency=8,
        )
    )
    modes = result["modes"]
    assert modes["observe"]["repeated_calls_per_task"] > 0, "the model must repeat itself"
    assert modes["enforce"]["repeated_calls_per_task"] == 0
    with gateway.client() as client:
        text = client.get("/metrics").text
    assert "entrogate_replayed_turns_total 0.0" not in text
    command = [sys.executable, "-m", "entrogate", "policy", "replay"]
    replayed = subprocess.run(
        [*command, "--store", f"sqlite:///{gateway.store}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "different: 0" in replayed.stdout

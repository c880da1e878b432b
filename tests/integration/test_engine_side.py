"""Exact captures from the scripted upstream's engine side: the recommended path, end to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import CHAT, SURE, TOOLS, UNSURE, Running, ask, calling, policy_file


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(engine=True) as server:
        yield server


async def exact(start: Start, upstream: ScriptedUpstream, **options: Any) -> Running:
    return await start(upstream={"capture": upstream.captures}, **options)


def entropy_of(confidence: float) -> float:
    """Of a scripted token: each alternative is half as likely as the one before."""
    spread = [(1 - confidence) * 0.5 ** (n + 1) for n in range(60)]
    return -math.fsum(p * math.log(p) for p in (confidence, *spread))


async def test_ready_says_exact(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = await exact(start, upstream)
    ready = (await gateway.client.get("/ready")).json()["upstream"]
    assert ready["estimator"] == "exact"
    assert ready["gate_points"] == ["engine", "gateway"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_is_captured_exactly(
    start: Start, upstream: ScriptedUpstream, stream: bool
) -> None:
    gateway = await exact(start, upstream)
    body = ask({"reasoning": "one two three", "content": "Berlin.", "confidence": UNSURE})
    if stream:
        answer, _ = await gateway.stream(body)
    else:
        answer = await gateway.chat(body)
    (turn,) = (await gateway.trajectory(answer, tokens="true"))["turns"]
    assert turn["capture_gap"] is None
    assert turn["segment"]["estimator"] == "exact"
    assert turn["segment"]["max"]["upper"] == pytest.approx(entropy_of(UNSURE), rel=1e-5)
    assert "logprobs" not in upstream.stats.bodies[-1].decode()


async def test_a_call_is_suppressed_before_it_is_sampled(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    policy = policy_file(folder, defaults={"threshold": 1.5}, tools={"lookup": {}})
    gateway = await exact(start, upstream, policy=policy)
    asked = upstream.stats.requests
    body = ask(calling("Ada", confidence=SURE)) | {"tools": TOOLS[:1]}
    answer = await gateway.chat(body)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert upstream.stats.requests == asked + 1
    (turn,) = (await gateway.trajectory(answer))["turns"]
    (call,) = turn["calls"]
    assert (call["name"], call["decision"]["applied"]) == ("(unsampled)", "suppress")
    assert turn["wasted_tokens"] == 0
    body = ask(calling("Bob", confidence=UNSURE)) | {"tools": TOOLS[:1]}
    unsure = await gateway.chat(body)
    assert unsure.json()["choices"][0]["finish_reason"] == "tool_calls"


async def test_many_at_a_time_do_not_mix(start: Start, upstream: ScriptedUpstream) -> None:
    gateway = await exact(start, upstream)

    async def one(number: int) -> None:
        n = 1 + number % 3
        text = " ".join(["word"] * (number + 1))
        body = ask({"reasoning": text, "content": "x"}, n=n)
        answer = await gateway.chat(body)
        turns = (await gateway.trajectory(answer))["turns"]
        assert len(turns) == n
        assert all(turn["capture_gap"] is None for turn in turns)
        assert {turn["segment"]["n_tokens"] for turn in turns} == {number + 3}

    await asyncio.gather(*(one(number) for number in range(24)))


@pytest.mark.parametrize("fault", ["cut", "end", "sse_error", "garbage"])
async def test_a_broken_answer_leaves_no_capture_behind(
    start: Start, upstream: ScriptedUpstream, fault: str
) -> None:
    gateway = await exact(start, upstream)
    step = {"reasoning": "one two three", "content": "Berlin.", "fault": fault, "at": 4}
    answer, _ = await gateway.stream(ask(step))
    assert answer.status_code in {200, 502}
    channel = gateway.gateway.channel
    assert channel is not None
    async with asyncio.timeout(60):
        while channel._requests or channel._streams:
            await asyncio.sleep(0.01)
    assert channel.malformed == 0
    good = await gateway.client.post(CHAT, json=ask({"content": "Berlin."}))
    assert good.status_code == 200


async def test_a_bad_argument_is_refused_as_the_plugin_does(upstream: ScriptedUpstream) -> None:
    for arguments in (
        {"entrogate": "x/y/1"},
        {"entrogate": f"{'0' * 16}/1/5", "entrogate_gate": 7},
    ):
        body = {"model": "scripted", "prompt": "a", "max_tokens": 2, "vllm_xargs": arguments}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{upstream.url}/v1/completions", json=body)
        assert answer.status_code == 400
        assert "entrogate" in answer.text

"""In mode observe the client's bytes are those of the upstream, but for the ids that we mint."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.harness import (
    CHAT,
    Running,
    ask,
    calling,
    events,
    same_bytes,
)

REASONED = {"reasoning": "six times seven", "content": "It is 42, é 漢."}
SPOKEN = calling("Ada", content="Let me see.")
STEPS = {
    "text": {"content": "Plain text, nothing else."},
    "reasoned": REASONED,
    "call": calling("Ada"),
    "parallel": calling("Ada", "Bo", "Cy"),
    "spoken": SPOKEN,
    "off_top": {**REASONED, "off_top": True},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": {"logprobs": True},
    "top": {"logprobs": True, "top_logprobs": 3},
    "most": {"logprobs": True, "top_logprobs": 20},
    "ids": {"return_token_ids": True},
    "both": {"logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    "length": {"max_tokens": 9},
    "n": {"n": 3, "temperature": 1.0},
    "n_ids": {"n": 3, "temperature": 1.0, "return_token_ids": True},
}
STREAMED: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "usage": {"stream_options": {"include_usage": True}},
    "usage_each": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "usage_top": {"stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1},
}


async def both(upstream: ScriptedUpstream, gateway: Running, body: dict[str, Any]) -> list[bytes]:
    """The answer of the upstream and that of the gateway to the same body."""
    found: list[bytes] = []
    async with httpx.AsyncClient() as direct:
        for client, base in ((direct, upstream.url), (gateway.client, "")):
            response = await client.post(base + CHAT, json=body)
            assert response.status_code == 200, response.text
            found.append(same_bytes(response.content))
            found.append(response.headers["content-type"].encode())
    return found


@pytest.mark.parametrize("step", STEPS)
async def test_streams_are_equal(upstream: ScriptedUpstream, gateway: Running, step: str) -> None:
    for (name, option), tools in itertools.product(STREAMED.items(), (True, False)):
        body = ask(STEPS[step], tools=tools, stream=True, **option)
        direct, direct_type, ours, our_type = await both(upstream, gateway, body)
        assert ours == direct, (name, tools)
        assert our_type == direct_type


@pytest.mark.parametrize("step", STEPS)
async def test_bodies_are_equal(upstream: ScriptedUpstream, gateway: Running, step: str) -> None:
    for (name, option), tools in itertools.product(OPTIONS.items(), (True, False)):
        body = ask(STEPS[step], tools=tools, **option)
        direct, direct_type, ours, our_type = await both(upstream, gateway, body)
        assert ours == direct, (name, tools)
        assert our_type == direct_type


async def test_choices_that_differ(upstream: ScriptedUpstream, gateway: Running) -> None:
    choices = [calling("Ada"), {"content": "No tool."}, SPOKEN]
    for stream in (False, True):
        body = ask(choices, n=3, temperature=1.0, stream=stream)
        direct, _, ours, _ = await both(upstream, gateway, body)
        assert ours == direct


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "lookup"}}]
)
async def test_forced_calls(upstream: ScriptedUpstream, gateway: Running, choice: object) -> None:
    for stream in (False, True):
        body = ask(calling("Ada"), tool_choice=choice, stream=stream)
        direct, _, ours, _ = await both(upstream, gateway, body)
        assert ours == direct


async def test_every_field_reaches_the_upstream(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    fields = {
        "temperature": 0.3,
        "seed": 7,
        "logit_bias": {"5": 1.5},
        "vllm_xargs": {"a": 1},
        "chat_template_kwargs": {"enable_thinking": True},
        "metadata": {"customer": "7"},
        "a_field_of_tomorrow": [1, {"b": None}],
    }
    body = ask(STEPS["text"], **fields)
    assert (await gateway.chat(body)).status_code == 200
    sent = json.loads(upstream.stats.bodies[-1])
    assert {name: sent[name] for name in body} == body
    added = {"return_token_ids": True, "logprobs": True, "top_logprobs": 5}
    assert {k: v for k, v in sent.items() if k not in body} == added


async def test_our_headers(gateway: Running) -> None:
    for stream in (False, True):
        body = ask(calling("Ada"), stream=stream)
        response = await gateway.chat(body, x_request_id="req-17")
        assert response.headers["x-request-id"] == "req-17"
        assert response.headers["x-entrogate-trajectory-id"]
        assert ("x-entrogate-decision" in response.headers) is not stream
        assert "req-17" not in response.text  # it names no answer


async def test_minted_ids_are_the_same_all_through_a_stream(gateway: Running) -> None:
    _, stream = await gateway.stream(ask(calling("Ada", "Bo")))
    deltas = [part["delta"] for event in events(stream) for part in event["choices"]]
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    ids = [call["id"] for call in pieces if "id" in call]
    assert len(ids) == len(set(ids)) == 2
    assert all(i.startswith("call_eg") for i in ids)
    assert b"chatcmpl-tool-" not in stream


async def test_debug_object(gateway: Running) -> None:
    body = ask(calling("Ada"))
    whole = (await gateway.chat(body, x_entrogate_debug="1")).json()["entrogate"]
    _, stream = await gateway.stream(body, x_entrogate_debug="1")
    (streamed,) = [e["entrogate"] for e in events(stream) if "entrogate" in e]
    for debug in (whole, streamed):
        (turn,) = debug["turns"]
        assert turn["estimator"] == "topk"
        assert turn["segment"]["mean"]["lower"] <= turn["segment"]["mean"]["upper"]
        (decision,) = turn["decisions"]
        assert (decision["tool"], decision["applied"]) == ("lookup", "allow")
        assert decision["propensity"] == 1.0


async def test_completions_and_models_cross_unchanged(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    async with httpx.AsyncClient() as direct:
        models = await direct.get(f"{upstream.url}/v1/models")
        assert (await gateway.client.get("/v1/models")).content == models.content
        for stream in (False, True):
            body = {"model": "scripted", "prompt": [1, 2, 3], "stream": stream, "logprobs": 2}
            wanted = await direct.post(f"{upstream.url}/v1/completions", json=body)
            got = await gateway.client.post("/v1/completions", json=body)
            assert same_bytes(got.content) == same_bytes(wanted.content)

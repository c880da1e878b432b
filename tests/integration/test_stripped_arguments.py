"""No door lets a client's `entrogate…` arguments through to the engine, nor into the record."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.harness import CHAT, SURE, Running, ask, calling, error_of, policy_file

JSON = {"content-type": "application/json"}
COMPLETIONS = "/v1/completions"
SAY = {"content": "Hello there."}
OURS = {
    "entrogate": "x/y/99999999",
    "entrogate_choice": "abc",
    "entrogate_gate": [1, 99999999, 1786, 1787, 0, 0.0, 0, False, False, 0.0],
    " ENTROGATE_other": 1,
}
DOORS = {
    CHAT: lambda **fields: ask(SAY, **fields),
    RESPONSES: lambda **fields: ask_responses(SAY, **fields),
    MESSAGES: lambda **fields: ask_messages(SAY, **fields),
    COMPLETIONS: lambda **fields: {"model": "scripted", "prompt": [1, 2, 3], **fields},
}
TRICKS = {
    "plain": lambda raw: raw,
    "escaped": lambda raw: raw.replace(b'"entrogate', rb'"\u0065ntrogate'),
    "escaped_holder": lambda raw: raw.replace(b'"vllm_xargs', rb'"vllm\u005fxargs'),
    "twice": lambda raw: raw[:-1] + b', "vllm_xargs": ' + json.dumps(OURS).encode() + b"}",
    "utf_16": lambda raw: raw.decode().encode("utf-16"),
    "byte_order_mark": lambda raw: b"\xef\xbb\xbf" + raw,
}

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_strips(upstream: ScriptedUpstream, gateway: Running, door: str) -> None:
    for trick, stream in itertools.product(TRICKS, (False, True)):
        body = DOORS[door](vllm_xargs={**OURS, "mine": 7}, stream=stream)
        raw = TRICKS[trick](json.dumps(body).encode())
        response = await gateway.client.post(door, content=raw, headers=JSON)
        assert response.status_code == 200, response.text
        sent = upstream.stats.as_dict()["bodies"][-1]
        assert sent["vllm_xargs"] == ({} if trick == "twice" else {"mine": 7}), trick
        if door != COMPLETIONS:
            params = (await gateway.trajectory(response))["turns"][0]["params"]
            assert params["vllm_xargs"] == sent["vllm_xargs"]


@pytest.mark.parametrize("door", DOORS)
async def test_arguments_of_another_kind(
    upstream: ScriptedUpstream, gateway: Running, door: str
) -> None:
    before = upstream.stats.requests
    for extra in ("x", [1], 3, True):
        response = await gateway.client.post(door, json=DOORS[door](vllm_xargs=extra))
        assert response.status_code == 400
        assert "vllm_xargs" in response.json()["error"]["message"]
    assert upstream.stats.requests == before


async def test_resuming_strips_too(upstream: ScriptedUpstream, start: Start, folder: Any) -> None:
    policy = policy_file(folder, tools={"lookup": {"threshold": 1.5}})
    gateway = await start(policy=policy)
    body = ask(calling("Ada", confidence=SURE), vllm_xargs={**OURS, "mine": 7})
    response = await gateway.chat(body)
    assert response.headers["x-entrogate-decision"] == "suppress"
    assert upstream.stats.paths[COMPLETIONS]
    for sent in upstream.stats.as_dict()["bodies"][-2:]:
        assert sent["vllm_xargs"] == {"mine": 7}


async def test_completions_that_are_no_object(gateway: Running) -> None:
    for raw in (b"[1]", b"{", b'{"prompt": NaN}'):
        response = await gateway.client.post(COMPLETIONS, content=raw, headers=JSON)
        assert error_of(response, 400)["code"] == "invalid_json"

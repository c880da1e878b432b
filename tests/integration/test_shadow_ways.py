"""Shadows behind every door, of published weights, and of models that no token lets call."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.harness import SURE, TOOLS, UNSURE, ask, calling
from tests.integration.publishing import POLL, VERSION, lora, publish, table
from tests.integration.shadowed import completions, start_shadowing, turns_of

BERLIN = calling("Ada", masked="It is Berlin.")


async def test_where_no_token_opens_a_call_the_tools_are_left_out(
    upstream: ScriptedUpstream, start: Start
) -> None:
    gateway = await start_shadowing(start, upstream={"tool_call_token": "two tokens"})
    (turn,) = await turns_of(gateway, await gateway.chat(ask(BERLIN)))
    assert turn["shadow"]["way"] == "no_tools"
    assert turn["shadow"]["n_kept"] == 0
    first, again = [json.loads(body) for body in list(upstream.stats.bodies)[-2:]]
    assert first["tools"]
    assert "tools" not in again
    assert again["messages"] == first["messages"]
    assert again["max_completion_tokens"] == 256


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("door", "body"), [(MESSAGES, ask_messages), (RESPONSES, ask_responses)])
async def test_behind_every_door(start: Start, door: str, body: Any, stream: bool) -> None:
    gateway = await start_shadowing(start)
    answer = await gateway.client.post(door, json=body(BERLIN, stream=stream))
    assert answer.status_code == 200, answer.text
    (turn,) = await turns_of(gateway, answer)
    assert turn["shadow"]["content"].strip() == "It is Berlin."


async def test_the_weights_of_the_turn_decode_it(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    """And keep loaded for it: they are not unloaded while a shadow runs."""
    gateway = await start_shadowing(start, weights=POLL)
    published = await publish(gateway, lora(folder / "a", "a"), share=1.0)
    upstream.completions.clear()
    answer = await gateway.chat(ask(BERLIN))
    assert answer.headers[VERSION] == published["version"]
    (entry,) = [e for v, e in (await table(gateway)).items() if v == published["version"]]
    assert entry["in_flight"] == 1
    upstream.completions.set()
    (turn,) = await turns_of(gateway, answer)
    assert turn["shadow"]["weight_version"] == published["version"]
    (resumed,) = completions(upstream)
    assert resumed["model"] == published["name"]


async def test_many_at_a_time_do_not_mix(start: Start) -> None:
    async with ScriptedUpstream(engine=True) as upstream:
        capture = {"capture": upstream.captures}
        gateway = await start_shadowing(start, url=upstream.url, upstream=capture)
        confidences = itertools.cycle((SURE, UNSURE))

        async def one(number: int) -> None:
            masked = "word " * number + str(number)
            step = calling("Ada", masked=masked, confidence=next(confidences))
            answer = await gateway.chat(ask(step) | {"tools": TOOLS[:1]})
            (turn,) = await turns_of(gateway, answer, tokens="true")
            assert turn["shadow"]["content"].strip() == masked
            assert turn["shadow"]["capture_gap"] is None

        await asyncio.gather(*(one(number) for number in range(24)))

"""What a turn holds is given back on every way out; captures by the engine side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    SURE,
    UNSURE,
    Running,
    ask,
    calling,
    eventually,
    message_of,
    policy_file,
)

REPEATS = 20


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(engine=True) as server:
        yield server


@pytest_asyncio.fixture
async def exact(start: Start, upstream: ScriptedUpstream, tmp_path: Path) -> Running:
    policy = policy_file(tmp_path, defaults={"threshold": 1.5}, tools={"lookup": {}})
    gateway = await start(upstream={"capture": upstream.captures}, policy=policy)
    assert (await gateway.chat(ask({"content": "Hi."}))).status_code == 200
    return gateway


async def nothing_held(gateway: Running) -> None:
    channel = gateway.gateway.channel
    assert channel is not None
    await eventually(lambda: not gateway.gateway.background)
    await eventually(lambda: not channel._requests)
    assert sum(gateway.gateway.weights.running.values()) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "step",
    [
        {"fault": "error", "status": 400},
        {"fault": "error", "status": 500},
        {"content": "Plain text, but cut.", "fault": "cut", "at": 3},
        {"content": "Plain text, but garbage.", "fault": "garbage", "at": 3},
        calling("Ada", confidence=UNSURE),
        calling("Ada", "Bo", confidence=SURE),
    ],
    ids=["refused", "failed", "cut", "garbage", "called", "suppressed"],
)
async def test_answered_turns_hold_nothing(
    exact: Running, step: dict[str, Any], stream: bool
) -> None:
    for _ in range(REPEATS):
        await exact.chat(ask(step, stream=stream))
    await nothing_held(exact)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_turns_of_clients_that_left_hold_nothing(
    exact: Running, upstream: ScriptedUpstream, stream: bool
) -> None:
    body = ask({"content": "One two three four", "fault": "stall", "at": 3}, stream=stream)

    async def ask_in_vain() -> None:
        async with httpx.AsyncClient(base_url=exact.url, timeout=60) as client:
            await client.post(CHAT, json=body)

    asking = [asyncio.create_task(ask_in_vain()) for _ in range(REPEATS)]
    await eventually(lambda: upstream.stats.open == REPEATS)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await nothing_held(exact)


async def test_turns_that_find_no_server_hold_nothing(
    exact: Running, upstream: ScriptedUpstream
) -> None:
    await upstream.aclose()
    for _ in range(REPEATS):
        response = await exact.chat(ask({"content": "Hi."}))
        assert response.status_code == 502
    await nothing_held(exact)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_failed_resume_leaves_the_other_choice_alone(
    exact: Running, upstream: ScriptedUpstream, stream: bool
) -> None:
    """With n = 2, the capture of one choice used to be taken for that of the other."""
    upstream.refuse_completions = True
    body = ask(calling("Ada", confidence=SURE), n=2, stream=stream)
    response = await exact.chat(body)
    assert response.status_code == 200
    zero, one = (await exact.trajectory(response, tokens="true"))["turns"]
    for turn in (zero, one):
        assert turn["capture_gap"] is None
        assert turn["calls"][0]["decision"]["reason"] == "gate_fault"
    assert zero["tokens"]["token_ids"] == one["tokens"]["token_ids"]
    assert zero["n_tokens"] == one["n_tokens"]
    await nothing_held(exact)


async def test_a_long_answer_is_stored_whole(exact: Running) -> None:
    """Its text crosses unread, and is read in slices."""
    text = " ".join(f"w{i}" for i in range(1500))
    response, raw = await exact.stream(ask({"content": text}, tools=False, max_tokens=8000))
    assert response.status_code == 200
    assert raw.endswith(b"data: [DONE]\n\n")
    (turn,) = (await exact.trajectory(response))["turns"]
    assert turn["response"]["content"] == text
    assert turn["capture_gap"] is None


async def test_a_whole_answer_and_its_record_say_the_same(exact: Running) -> None:
    response = await exact.chat(ask(calling("Ada", "Bo", confidence=UNSURE)))
    (turn,) = (await exact.trajectory(response))["turns"]
    assert message_of(response)["tool_calls"] == turn["response"]["tool_calls"]
    assert response.json()["id"] == turn["response_id"]

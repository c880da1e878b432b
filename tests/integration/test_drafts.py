"""Drafts: the answer without the call is begun before the decision, and is its beginning."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from entrogate.gate.features import from_json
from entrogate_lab.bench.script import pieces
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    Running,
    ask,
    calling,
    events,
    message_of,
    message_of_stream,
    policy_file,
    same_bytes,
)

LONG = "It is the city of Berlin on the river Spree, as far as is known today."
ABOVE, BELOW = 9.0, 0.001  # thresholds that the entropy of a scripted answer is below, and above


@pytest_asyncio.fixture(params=["topk", "exact"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(engine=request.param == "exact") as server:
        yield server


def drafting(folder: Path, threshold: float, **signal: Any) -> str:
    return policy_file(
        folder,
        signal={"statistic": "draft_entropy_max", "draft_tokens": 4, **signal},
        defaults={"threshold": threshold},
        tools={"lookup": None},
    )


async def begin(
    start: Start, server: ScriptedUpstream, policy: str, call_token: str = "<tool_call>"
) -> Running:
    branch = {"capture": server.captures, "tool_call_token": call_token}
    return await start(policy=policy, upstream=branch)


def without_calls(upstream: ScriptedUpstream) -> list[dict[str, Any]]:
    """The bodies of requests for an answer without its call."""
    found = [json.loads(body) for body in upstream.stats.bodies]
    return [body for body in found if isinstance(body.get("prompt"), list)]


async def answered(gateway: Running, body: dict[str, Any], *, stream: bool) -> tuple[Any, Any, str]:
    """The response, the message and the finish reason."""
    if stream:
        response, raw = await gateway.stream(body)
        found = [c["finish_reason"] for e in events(raw) for c in e["choices"]]
        (finish,) = [reason for reason in found if reason]
        return response, message_of_stream(raw), finish
    response = await gateway.chat(body)
    return response, message_of(response), response.json()["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reasoning", [None, "who may this be"])
async def test_the_draft_is_the_beginning_of_the_answer(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool, reasoning: str | None
) -> None:
    """Four tokens decide, the rest follows, and only the call's own tokens are lost."""
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    body = ask(calling("Ada", masked=LONG, reasoning=reasoning))
    response, message, finish = await answered(gateway, body, stream=stream)
    assert (message["content"].strip(), finish) == (LONG, "stop")
    assert "tool_calls" not in message
    first, rest = without_calls(upstream)
    assert first["max_tokens"] == 4
    (turn,) = (await gateway.trajectory(response, tokens="true"))["turns"]
    ids, at = turn["tokens"]["token_ids"], turn["altered"][0][0]
    assert rest["prompt"] == first["prompt"] + ids[at : at + 4]
    assert turn["altered"] == [[at, at + 1]]
    assert turn["capture_gap"] is None
    (call,) = turn["calls"]
    assert (call["decision"]["applied"], call["decision"]["reason"]) == ("suppress", "certain")
    draft = from_json(json.dumps(call["features"])).draft
    assert draft is not None
    assert draft.n_tokens == 4
    call_text = '<tool_call>\n{"name": "lookup", "arguments": {"entity": "Ada"}}\n</tool_call>'
    assert turn["wasted_tokens"] == len(pieces(call_text)) + 1  # and the end of the turn


@pytest.mark.parametrize("stream", [True, False])
async def test_a_short_answer_is_whole_in_its_draft(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    body = ask(calling("Ada", masked="Berlin.", reasoning=None))
    response, message, finish = await answered(gateway, body, stream=stream)
    assert (message["content"], finish) == ("Berlin.", "stop")
    (asked,) = without_calls(upstream)
    assert asked["max_tokens"] == 4
    (turn,) = (await gateway.trajectory(response))["turns"]
    features = from_json(json.dumps(turn["calls"][0]["features"]))
    assert features.draft is not None
    assert features.draft.n_tokens == 2  # the end of turn is no part of the draft
    assert turn["capture_gap"] is None


@pytest.mark.parametrize("stream", [True, False])
async def test_an_allowed_call_is_not_touched_and_pays_its_draft(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    gateway = await begin(start, upstream, drafting(folder, BELOW))
    body = ask(calling("Ada", masked=LONG, reasoning=None), stream=stream)
    got = await gateway.chat(body)
    async with httpx.AsyncClient() as client:
        direct = await client.post(upstream.url + CHAT, json=body)
    assert same_bytes(got.content) == same_bytes(direct.content)
    (turn,) = (await gateway.trajectory(got))["turns"]
    (call,) = turn["calls"]
    assert (call["decision"]["applied"], call["decision"]["reason"]) == ("allow", "uncertain")
    assert turn["wasted_tokens"] == 4


async def test_observing_drafts_nothing(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gate = {"policy": drafting(folder, ABOVE), "mode": "observe"}
    gateway = await start(gate=gate, upstream={"capture": upstream.captures})
    got = await gateway.chat(ask(calling("Ada", masked=LONG)))
    assert without_calls(upstream) == []
    (turn,) = (await gateway.trajectory(got))["turns"]
    assert turn["calls"][0]["decision"]["reason"] == "no_draft"


@pytest.mark.parametrize("stream", [True, False])
async def test_no_draft_no_suppression(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    await gateway.chat(ask({"content": "Hello."}))
    upstream.refuse_completions = True
    response, message, finish = await answered(gateway, ask(calling("Ada")), stream=stream)
    assert (len(message["tool_calls"]), finish) == (1, "tool_calls")
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["calls"][0]["decision"]["reason"] == "no_draft"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("field", [{"stop": ["Spree"]}, {"presence_penalty": 0.5}])
async def test_what_counts_over_the_whole_answer_begins_it_anew(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool, field: dict[str, Any]
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    body = ask(calling("Ada", masked=LONG, reasoning=None), **field)
    response, message, _ = await answered(gateway, body, stream=stream)
    assert message["content"].startswith("It is the city")
    draft, again = without_calls(upstream)
    assert draft["prompt"] == again["prompt"]
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["wasted_tokens"] > 4


async def test_the_rest_has_another_seed_than_the_draft(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    await gateway.chat(ask(calling("Ada", masked=LONG), seed=5))
    assert [body["seed"] for body in without_calls(upstream)] == [5, 6]


async def test_logprobs_of_draft_and_rest_stand_in_one_list(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    body = ask(calling("Ada", masked=LONG, reasoning=None), logprobs=True, top_logprobs=2)
    got = await gateway.chat(body)
    (choice,) = got.json()["choices"]
    (turn,) = (await gateway.trajectory(got, tokens="true"))["turns"]
    assert len(choice["logprobs"]["content"]) == len(turn["tokens"]["token_ids"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_without_a_call_token_is_asked_again_without_tools(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    """As with parsers that open a call by JSON or by several tokens."""
    gateway = await begin(start, upstream, drafting(folder, ABOVE), "several tokens")
    ready = (await gateway.client.get("/ready")).json()["upstream"]
    assert ready["signals"] == ["draft"]
    body = ask(calling("Ada", masked=LONG, reasoning=None))
    response, message, finish = await answered(gateway, body, stream=stream)
    assert (message["content"], finish) == (LONG, "stop")
    assert "tool_calls" not in message
    assert without_calls(upstream) == []
    last = json.loads(upstream.stats.bodies[-1])
    assert "tools" not in last
    assert last["stream"] is False
    (turn,) = (await gateway.trajectory(response))["turns"]
    (call,) = turn["calls"]
    assert (call["decision"]["applied"], call["decision"]["reason"]) == ("suppress", "certain")
    assert turn["capture_gap"] is not None


async def test_without_a_call_token_what_was_said_before_lets_the_call_through(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE), "several tokens")
    body = ask(calling("Ada", masked=LONG, reasoning=None, content="Let me see."))
    for stream in (True, False):
        response, message, finish = await answered(gateway, body, stream=stream)
        assert (len(message["tool_calls"]), finish) == (1, "tool_calls")
        (turn,) = (await gateway.trajectory(response))["turns"]
        assert turn["calls"][0]["decision"]["reason"] == "no_draft"
    assert all("tools" in json.loads(b) for b in upstream.stats.bodies if b"Let me see" in b)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_draft_that_spells_the_call_decides_nothing(
    start: Start, upstream: ScriptedUpstream, folder: Path, stream: bool
) -> None:
    gateway = await begin(start, upstream, drafting(folder, ABOVE, draft_tokens=64))
    spelled = '{"name": "lookup", "arguments": {"entity": "Ada"}}'
    body = ask(calling("Ada", masked=spelled, reasoning=None))
    response, message, finish = await answered(gateway, body, stream=stream)
    assert (len(message["tool_calls"]), finish) == (1, "tool_calls")
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["calls"][0]["decision"]["reason"] == "no_draft"
    assert turn["wasted_tokens"] > 4


@pytest.mark.parametrize("masked", ["", " \n"])
async def test_a_draft_that_says_nothing_decides_nothing(
    start: Start, upstream: ScriptedUpstream, folder: Path, masked: str
) -> None:
    """However certain the model is of it, an empty answer is none."""
    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    got = await gateway.chat(ask(calling("Ada", masked=masked, reasoning=None)))
    assert message_of(got)["tool_calls"]
    (turn,) = (await gateway.trajectory(got))["turns"]
    assert turn["calls"][0]["decision"]["reason"] == "no_draft"


async def test_decisions_with_drafts_replay(
    start: Start, upstream: ScriptedUpstream, folder: Path
) -> None:
    from entrogate.store.read.replay import replay_store

    gateway = await begin(start, upstream, drafting(folder, ABOVE))
    for masked in (LONG, "Berlin."):
        await gateway.client.post(CHAT, json=ask(calling("Ada", masked=masked)))
    report = replay_store(gateway.gateway.store, None)
    assert (report.calls, report.mismatches) == (2, 0)

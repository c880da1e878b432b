"""Suppress, replay, explore: what the client, the upstream and the store see of a decision."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    SURE,
    TOOLS,
    UNSURE,
    ask,
    calling,
    events,
    follow_up,
    message_of,
    message_of_stream,
    policy_file,
    same_bytes,
)

ALWAYS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
BY_ENTROPY: dict[str, Any] = {"defaults": {"threshold": 1.5}, "tools": {"lookup": None}}
REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}


async def direct_answer(upstream: ScriptedUpstream, body: dict[str, Any]) -> bytes:
    async with httpx.AsyncClient() as client:
        return (await client.post(upstream.url + CHAT, json=body)).content


def decided(turn: dict[str, Any]) -> list[dict[str, Any]]:
    return [call["decision"] for call in turn["calls"]]


def completions(upstream: ScriptedUpstream) -> list[dict[str, Any]]:
    """The bodies with which turns were resumed."""
    found = [json.loads(body) for body in upstream.stats.bodies]
    return [body for body in found if isinstance(body.get("prompt"), list)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("content", ["", "Let me see."])
async def test_suppression(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool, content: str
) -> None:
    """No call reaches the client, the answer is text, resumed from the exact ids."""
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask(calling("Ada", content=content, masked="It is Berlin."))
    if stream:
        response, raw = await gateway.stream(body)
        message, text = message_of_stream(raw), raw.decode()
        (finish,) = [f for e in events(raw) for c in e["choices"] if (f := c["finish_reason"])]
    else:
        response = await gateway.chat(body)
        message, text = message_of(response), response.text
        finish = response.json()["choices"][0]["finish_reason"]
        assert response.headers["x-entrogate-decision"] == "suppress"
    assert "tool_calls" not in message
    assert "lookup" not in text
    assert message["content"].replace("\n", "") == content + "It is Berlin."
    assert message["reasoning"] == "\nI have to think about who this may be\n"
    assert finish == "stop"
    (resumed,) = completions(upstream)
    (turn,) = (await gateway.trajectory(response, tokens="true"))["turns"]
    tokens = turn["tokens"]
    start_of_rest = turn["altered"][0][0]
    assert resumed["prompt"] == tokens["prompt_token_ids"] + tokens["token_ids"][:start_of_rest]
    call_id = next(iter(resumed["logit_bias"]))
    assert resumed["logit_bias"] == {call_id: -100.0}
    assert int(call_id) not in tokens["token_ids"]
    (call,) = decided(turn)
    assert (call["applied"], call["reason"]) == ("suppress", "certain")
    assert turn["wasted_tokens"] > 0
    assert turn["capture_gap"] is None
    metrics = await gateway.metrics()
    assert metrics["entrogate_suppressed_tokens_total"] == turn["wasted_tokens"]
    labels = {"tool": "lookup", "decision": "suppress", "reason": "certain"}
    assert await gateway.metric("entrogate_tool_calls_total", **labels) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_rest_of_the_turn_is_usable(start: Start, folder: Path, stream: bool) -> None:
    """A dialogue goes on after a suppressed call, in the same trajectory."""
    gateway = await start(policy=policy_file(folder, **BY_ENTROPY))
    body = ask(calling("Ada", confidence=UNSURE), calling("Bo", confidence=SURE, masked="Bo."))
    first = await gateway.chat(body)
    after = follow_up(body, message_of(first), "found")
    if stream:
        second, raw = await gateway.stream(after)
        message = message_of_stream(raw)
    else:
        second = await gateway.chat(after)
        message = message_of(second)
    assert message["content"].strip() == "Bo."
    one, two = (await gateway.trajectory(second))["turns"]
    assert [c["applied"] for t in (one, two) for c in decided(t)] == ["allow", "suppress"]
    assert [c["reason"] for t in (one, two) for c in decided(t)] == ["uncertain", "certain"]
    after["messages"] = [*after["messages"], message, {"role": "user", "content": "Thanks."}]
    third = await gateway.chat(after)
    assert third.headers["x-entrogate-trajectory-id"] == first.headers["x-entrogate-trajectory-id"]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_allowed_is_not_touched(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    gateway = await start(policy=policy_file(folder, **BY_ENTROPY))
    for step in (
        calling("Ada", confidence=UNSURE),
        calling("Ada", "Bo", confidence=UNSURE, content="Both."),
        calling("Ada", name="send_mail", confidence=SURE),
        {"content": "No call at all."},
    ):
        body = ask(step, stream=stream)
        got = await gateway.chat(body)
        assert same_bytes(got.content) == same_bytes(await direct_answer(upstream, body))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "lookup"}}]
)
async def test_a_demanded_call_is_never_suppressed(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool, choice: object
) -> None:
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask(calling("Ada"), tool_choice=choice, stream=stream)
    got = await gateway.chat(body)
    assert same_bytes(got.content) == same_bytes(await direct_answer(upstream, body))
    (turn,) = (await gateway.trajectory(got))["turns"]
    (call,) = decided(turn)
    assert (call["applied"], call["reason"]) == ("allow", "tool_choice")


@pytest.mark.parametrize("stream", [True, False])
async def test_parallel_calls_stand_or_fall_together(
    start: Start, folder: Path, stream: bool
) -> None:
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    mixed = {
        **calling("Ada"),
        "calls": [
            {"name": "lookup", "arguments": {"entity": "Ada"}},
            {"name": "send_mail", "arguments": {"entity": "Bo"}},
        ],
    }
    response = await gateway.chat(ask(mixed, stream=stream))
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert [c["applied"] for c in decided(turn)] == ["allow", "allow"]
    assert "send_mail" in response.text


async def test_text_is_never_held_back(start: Start, folder: Path) -> None:
    """The text before a gated call reaches the client while the call is still being written."""
    gateway = await start(policy=policy_file(folder, **BY_ENTROPY))
    step = calling("Ada", content="Let me see.", confidence=UNSURE)
    whole = await gateway.stream(ask(step, return_token_ids=True))
    n_before_call = whole[1].split(b'"tool_calls"')[0].count(b"data: ")
    body = ask({**step, "fault": "stall", "at": n_before_call + 1}, stream=True)
    seen = b""
    async with (
        httpx.AsyncClient(base_url=gateway.url) as client,
        client.stream("POST", CHAT, json=body) as response,
    ):
        async with asyncio.timeout(60):
            async for data in response.aiter_raw():
                seen += data
                if b'"content":"."' in seen:
                    break
    assert b'"tool_calls"' not in seen


@pytest.mark.parametrize("stream", [True, False])
async def test_replay(upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool) -> None:
    """An identical call gets its earlier result without a round trip to the client."""
    gateway = await start(policy=policy_file(folder, **REPLAY))
    body = ask(calling("Ada"), calling("Ada"), {"content": "It is Berlin."})
    first = await gateway.chat(body)
    after = follow_up(body, message_of(first), "Ada lives in Berlin")
    seen = upstream.stats.requests
    if stream:
        second, raw = await gateway.stream(after)
        message = message_of_stream(raw)
        assert len({e["id"] for e in events(raw)}) == 1
    else:
        second = await gateway.chat(after)
        message = message_of(second)
        assert second.headers["x-entrogate-decision"].startswith("replay")
    assert "tool_calls" not in message
    assert message["content"].endswith("It is Berlin.")
    assert upstream.stats.requests == seen + 2
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert sent[-1]["content"] == "Ada lives in Berlin"
    assert sent[-1]["tool_call_id"] == sent[-2]["tool_calls"][0]["id"]
    turns = (await gateway.trajectory(second))["turns"]
    assert [t["replayed"] for t in turns] == [False, True, False]
    (call,) = decided(turns[1])
    assert (call["applied"], call["reason"]) == ("replay", "repeat")
    assert (await gateway.metrics())["entrogate_replayed_turns_total"] == 1


async def test_replay_goes_on_after_the_replayed_turn(start: Start, folder: Path) -> None:
    """The client's history lacks the replayed turn; its next request still links."""
    gateway = await start(policy=policy_file(folder, **REPLAY))
    body = ask(calling("Ada"), calling("Ada"), calling("Bo"), {"content": "Done."})
    first = await gateway.chat(body)
    body = follow_up(body, message_of(first), "found")
    second = await gateway.chat(body)
    (call,) = message_of(second)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"entity": "Bo"}
    third = await gateway.chat(follow_up(body, message_of(second), "found too"))
    ids = {r.headers["x-entrogate-trajectory-id"] for r in (first, second, third)}
    assert len(ids) == 1


async def test_replays_are_limited(start: Start, folder: Path) -> None:
    """A model that only repeats itself is made to answer."""
    gateway = await start(policy=policy_file(folder, **REPLAY))
    body = ask(*[calling("Ada", masked="Enough.")] * 8)
    first = await gateway.chat(body)
    second = await gateway.chat(follow_up(body, message_of(first), "found"))
    message = message_of(second)
    assert "tool_calls" not in message
    assert message["content"].strip().endswith("Enough.")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_resume_that_is_refused_fails_open(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    """The call goes through after all, whole, and the fault is counted."""
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask(calling("Ada"), max_tokens=60)
    refusing = {**body, "logit_bias": {"5": 1.0}, "stop_token_ids": ["refused"]}
    wanted = await direct_answer(upstream, body)
    upstream.refuse_completions = True
    got = await gateway.chat({**refusing, "stream": stream})
    assert got.status_code == 200
    message = message_of_stream(got.content) if stream else message_of(got)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "lookup"
    assert (
        call["function"] == json.loads(wanted)["choices"][0]["message"]["tool_calls"][0]["function"]
    )
    assert (await gateway.metrics())["entrogate_gate_faults_total"] >= 1
    (turn,) = (await gateway.trajectory(got))["turns"]
    (recorded,) = decided(turn)
    assert (recorded["applied"], recorded["reason"]) == ("allow", "gate_fault")


async def test_observe_decides_but_does_nothing(
    upstream: ScriptedUpstream, start: Start, folder: Path
) -> None:
    gateway = await start(policy=policy_file(folder, **{**ALWAYS, "mode": "observe"}))
    body = ask(calling("Ada"))
    got = await gateway.chat(body)
    assert same_bytes(got.content) == same_bytes(await direct_answer(upstream, body))
    (turn,) = (await gateway.trajectory(got))["turns"]
    (call,) = decided(turn)
    assert (call["action"], call["applied"], call["propensity"]) == ("suppress", "allow", 1.0)


async def test_explore(start: Start, folder: Path) -> None:
    """The alternative is taken in about epsilon of the turns, with its probability recorded."""
    policy = {**BY_ENTROPY, "mode": "explore", "explore": {"epsilon": 0.3}}
    gateway = await start(policy=policy_file(folder, **policy))
    gateway.gateway.random = random.Random(5)
    body = ask(calling("Ada", confidence=UNSURE))
    applied: list[str] = []
    for _ in range(60):
        response = await gateway.chat(body)
        (turn,) = (await gateway.trajectory(response))["turns"]
        (call,) = decided(turn)
        assert call["action"] == "allow"
        assert call["propensity"] == pytest.approx(0.7 if call["applied"] == "allow" else 0.3)
        applied.append(call["applied"])
    # Binomial(60, 0.3): outside of 6…32 with probability below 1e-4; the seed is fixed anyway.
    assert 6 <= applied.count("suppress") <= 32


async def test_mode_header_where_it_is_allowed(start: Start, folder: Path) -> None:
    policy = policy_file(folder, **{**ALWAYS, "mode": "observe"})
    gateway = await start(policy=policy, gate={"policy": policy, "allow_mode_header": True})
    body = ask(calling("Ada"))
    assert "tool_calls" in message_of(await gateway.chat(body))
    assert "tool_calls" not in message_of(await gateway.chat(body, x_entrogate_mode="enforce"))


@pytest.mark.parametrize("stream", [True, False])
async def test_suppression_keeps_what_the_client_asked_for(
    start: Start, folder: Path, stream: bool
) -> None:
    """Token ids, log-probs and usage of a resumed answer belong to one sequence."""
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask(calling("Ada"), return_token_ids=True, logprobs=True, top_logprobs=2)
    if stream:
        body["stream_options"] = {"include_usage": True}
        _, raw = await gateway.stream(body)
        *chunks, last = events(raw)
        parts = [c["choices"][0] for c in chunks]
        ids = [i for p in parts for i in p.get("token_ids") or ()]
        logprobs = [e for p in parts for e in (p["logprobs"] or {"content": ()})["content"]]
        usage = last["usage"]
    else:
        answer = (await gateway.chat(body)).json()
        (choice,) = answer["choices"]
        ids, logprobs, usage = choice["token_ids"], choice["logprobs"]["content"], answer["usage"]
    assert len(ids) == len(logprobs)
    assert {len(e["top_logprobs"]) for e in logprobs} == {2}
    assert usage["completion_tokens"] == len(ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_are_gated_one_by_one(start: Start, folder: Path, stream: bool) -> None:
    gateway = await start(policy=policy_file(folder, **BY_ENTROPY))
    choices = [
        calling("Ada", confidence=SURE, masked="Ada."),
        calling("Bo", confidence=UNSURE),
        {"content": "Cy."},
    ]
    body = ask(choices, n=3, temperature=1.0)
    if stream:
        _, raw = await gateway.stream(body)
        messages = [message_of_stream(raw, i) for i in range(3)]
    else:
        answer = (await gateway.chat(body)).json()
        messages = [c["message"] for c in answer["choices"]]
    assert messages[0]["content"].strip() == "Ada."
    assert not messages[0].get("tool_calls")
    assert messages[1]["tool_calls"][0]["function"]["name"] == "lookup"
    assert messages[2]["content"] == "Cy."


async def test_policy_replay_gives_the_same_decisions(start: Start, folder: Path) -> None:
    """Every stored decision follows again from its features and its policy."""
    policy = {**BY_ENTROPY, "mode": "explore", "explore": {"epsilon": 0.5}}
    gateway = await start(policy=policy_file(folder, **policy), gate={"allow_mode_header": True})
    for confidence in (SURE, UNSURE, 0.6):
        for mode in ("observe", "explore"):
            body = ask(calling("Ada", confidence=confidence), calling("Ada"))
            first = await gateway.chat(body, x_entrogate_mode=mode)
            message = message_of(first)
            if "tool_calls" in message:
                await gateway.chat(follow_up(body, message, "found"), x_entrogate_mode=mode)
    from click.testing import CliRunner

    from entrogate.cli import command_line

    arguments = ["policy", "replay", "--store", f"sqlite:///{folder / 'store.db'}"]
    result = await asyncio.to_thread(CliRunner().invoke, command_line(), arguments)
    assert result.exit_code == 0, result.output
    assert "different: 0" in result.output
    assert "decided again: " in result.output


@pytest.mark.parametrize(("tools", "arguments"), [(TOOLS[:1], ""), (TOOLS, '{"entity": "Ada"}')])
async def test_a_stream_is_cut_early_only_where_every_tool_may_be_suppressed(
    start: Start, folder: Path, tools: list[dict[str, Any]], arguments: str
) -> None:
    """With `send_mail` on offer, a second call could be one that nobody may drop."""
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    response, _ = await gateway.stream({**ask(calling("Ada")), "tools": tools})
    (turn,) = (await gateway.trajectory(response))["turns"]
    (call,) = turn["calls"]
    assert call["arguments"] == arguments
    assert call["decision"]["applied"] == "suppress"

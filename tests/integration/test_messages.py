"""``/v1/messages``: the Messages API in front of the same turns as chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from entrogate_lab.bench.script import script
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.doors import (
    ANTHROPIC_TOOLS,
    MESSAGES,
    STEPS,
    anthropic_client,
    ask_messages,
    folded_message,
    same_answer,
    streamed,
)
from tests.integration.harness import (
    JSON,
    SURE,
    UNSURE,
    Running,
    ask,
    calling,
    eventually,
    follow_up,
    message_of,
    policy_file,
)

ALWAYS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
BY_ENTROPY: dict[str, Any] = {"defaults": {"threshold": 1.5}, "tools": {"lookup": None}}
REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}


async def said(gateway: Running, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    """The message, folded from a stream or whole."""
    if stream:
        response, events = await streamed(gateway, MESSAGES, body)
        assert response.status_code == 200, events
        return folded_message(events)
    response = await gateway.client.post(MESSAGES, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def go_on(body: dict[str, Any], message: dict[str, Any], *results: str) -> dict[str, Any]:
    """The next request of an agent: the answer, and one result for each of its calls."""
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    content = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    turn = {"role": "assistant", "content": message["content"]}
    after = [turn, {"role": "user", "content": content or "Thanks."}]
    return {**body, "messages": [*body["messages"], *after]}


async def trajectory(gateway: Running, message: dict[str, Any]) -> dict[str, Any]:
    """The trajectory that the message's own id names, by way of its feedback."""
    given = await gateway.client.post(
        "/v1/feedback", json={"response_id": message["id"], "score": 1.0}
    )
    assert given.status_code == 200, given.text
    found = await gateway.client.get(
        f"/v1/trajectories/{given.json()['trajectory_id']}", params={"tokens": "true"}
    )
    return found.json()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_a_body_is_what_its_stream_adds_up_to(gateway: Running, step: dict[str, Any]) -> None:
    body = ask_messages(step)
    whole = await said(gateway, body, stream=False)
    folded = await said(gateway, body, stream=True)
    assert same_answer(folded) == same_answer(whole)
    assert whole["usage"]["input_tokens"] > 0
    calls = step.get("calls", [])
    uses = [b for b in whole["content"] if b["type"] == "tool_use"]
    assert [(u["name"], u["input"]) for u in uses] == [(c["name"], c["arguments"]) for c in calls]
    assert whole["stop_reason"] == ("tool_use" if calls else "end_turn")
    assert all(u["id"].startswith("call_eg") for u in uses)
    thought = [b["thinking"].strip() for b in whole["content"] if b["type"] == "thinking"]
    assert thought == ([step["reasoning"]] if "reasoning" in step else [])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_the_sdk_reads_the_stream(gateway: Running, step: dict[str, Any]) -> None:
    body = ask_messages(step)
    async with anthropic_client(gateway) as client:
        async with client.messages.stream(**body) as stream:
            async for _ in stream:
                pass
            read = await stream.get_final_message()
        whole = await client.messages.create(**body)
    assert same_answer(json.loads(read.to_json())) == same_answer(json.loads(whole.to_json()))


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_recorded_is_what_chat_would_have_recorded(
    gateway: Running, stream: bool
) -> None:
    """Prompts, samples, calls, results and features, over an agent's turns."""
    steps = (calling("Ada", "Bo"), calling("Cy"), {"reasoning": "Aha", "content": "42."})
    chat = ask(*steps, text="Who?", max_tokens=4096)
    while True:
        response = await gateway.chat(chat)
        chatted = message_of(response)
        if "tool_calls" not in chatted:
            break
        chat = follow_up(chat, chatted, *("found" for _ in chatted["tool_calls"]))
    wanted = await gateway.trajectory(response, tokens="true")
    body = ask_messages(*steps)
    while (message := await said(gateway, body, stream=stream))["stop_reason"] == "tool_use":
        n_calls = sum(block["type"] == "tool_use" for block in message["content"])
        body = go_on(body, message, *["found"] * n_calls)
    got = await trajectory(gateway, message)
    assert len(got["turns"]) == len(wanted["turns"]) == 3
    for one, other in zip(got["turns"], wanted["turns"], strict=True):
        assert one["tokens"]["token_ids"] == other["tokens"]["token_ids"]
        assert one["segment"] == other["segment"]
        assert one["spans"] == other["spans"]
        assert one["n_messages"] == other["n_messages"]
        assert [(c["name"], c["arguments"], c["decision"]) for c in one["calls"]] == [
            (c["name"], c["arguments"], c["decision"]) for c in other["calls"]
        ]
        assert [r["content"] for r in one["results"]] == [r["content"] for r in other["results"]]
        assert one["capture_gap"] is None
        assert one["params"].pop("door") == {"name": "messages"}
        assert one["params"] == other["params"]
    assert got["toolsets"] == wanted["toolsets"]
    assert got["turns"][1]["change"] == wanted["turns"][1]["change"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_suppressed_call_never_shows(start: Start, folder: Path, stream: bool) -> None:
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask_messages(calling("Ada", masked="It is Berlin."))
    message = await said(gateway, body, stream=stream)
    assert message["stop_reason"] == "end_turn"
    assert [b["type"] for b in message["content"]] == ["thinking", "text"]
    assert message["content"][1]["text"].strip() == "It is Berlin."
    (turn,) = (await trajectory(gateway, message))["turns"]
    assert turn["calls"][0]["decision"]["applied"] == "suppress"
    assert message["usage"]["output_tokens"] == len(turn["tokens"]["token_ids"])
    again = await said(gateway, go_on(body, message), stream=stream)
    assert len((await trajectory(gateway, again))["turns"]) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_replayed_call_never_shows(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    gateway = await start(policy=policy_file(folder, **REPLAY))
    body = ask_messages(calling("Ada"), calling("Ada"), {"content": "It is Berlin."})
    first = await said(gateway, body, stream=stream)
    second = await said(gateway, go_on(body, first, "Ada lives in Berlin"), stream=stream)
    assert second["stop_reason"] == "end_turn"
    assert "tool_use" not in [b["type"] for b in second["content"]]
    assert second["content"][-1]["text"].strip() == "It is Berlin."
    turns = (await trajectory(gateway, second))["turns"]
    assert [t["replayed"] for t in turns] == [False, True, False]


@pytest.mark.parametrize("confidence", [SURE, UNSURE])
async def test_the_gate_decides_as_for_chat(start: Start, folder: Path, confidence: float) -> None:
    gateway = await start(policy=policy_file(folder, **BY_ENTROPY))
    step = calling("Ada", confidence=confidence)
    message = await said(gateway, ask_messages(step), stream=True)
    chatted = message_of(await gateway.chat(ask(step)))
    assert (message["stop_reason"] == "tool_use") == ("tool_calls" in chatted)
    assert (message["stop_reason"] == "tool_use") == (confidence == UNSURE)


async def test_a_stop_sequence_and_a_limit_are_named(gateway: Running) -> None:
    body = ask_messages({"content": "one two three four five six"}, tools=False)
    for stream in (True, False):
        cut = await said(gateway, {**body, "max_tokens": 3}, stream=stream)
        assert cut["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (500, "api_error"), (503, "overloaded_error")],
)
async def test_an_error_before_the_first_byte(
    gateway: Running, stream: bool, status: int, kind: str
) -> None:
    body = ask_messages({"content": "x", "fault": "error", "status": status}, stream=stream)
    response = await gateway.client.post(MESSAGES, json=body)
    assert response.status_code == (529 if status == 503 else status)
    assert response.json() == {
        "type": "error",
        "error": {"type": kind, "message": "scripted error"},
    }
    labels = {"route": MESSAGES, "status": str(response.status_code)}
    assert await gateway.metric("entrogate_requests_total", **labels) == 1


@pytest.mark.parametrize("fault", ["cut", "end", "sse_error", "garbage"])
async def test_an_error_in_mid_stream_is_the_last_event(gateway: Running, fault: str) -> None:
    step = {"content": "one two three four five", "fault": fault, "at": 3}
    body = ask_messages(step, tools=False)
    response, events = await streamed(gateway, MESSAGES, body)
    assert response.status_code == 200
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "error"
    assert set(events[-1]["error"]) == {"type", "message"}
    assert [e["type"] for e in events].count("error") == 1
    async with anthropic_client(gateway) as client:
        with pytest.raises(anthropic.APIStatusError):
            async with client.messages.stream(**body) as stream:
                await stream.get_final_message()


async def test_a_client_that_goes_away_ends_the_turn(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    step = {"content": "one two three", "fault": "stall", "at": 3}
    body = ask_messages(step, tools=False, stream=True)
    async with (
        httpx.AsyncClient(base_url=gateway.url) as client,
        client.stream("POST", MESSAGES, json=body) as response,
    ):
        async for _ in response.aiter_raw():
            break
    await eventually(lambda: upstream.stats.aborted == 1)
    await eventually(lambda: not gateway.gateway.background)
    listed = (await gateway.client.get("/v1/trajectories")).json()["data"]
    assert [t["incomplete_reason"] for t in listed] != [None]


async def test_tokens_are_counted_by_the_model_server(gateway: Running) -> None:
    body = ask_messages(calling("Ada"), system="Be brief.")
    message = await said(gateway, body, stream=False)
    counted = {k: v for k, v in body.items() if k != "max_tokens"}
    async with anthropic_client(gateway) as client:
        count = await client.messages.count_tokens(**counted)
        bare = await client.messages.count_tokens(**{**counted, "tools": []})
    assert count.input_tokens == message["usage"]["input_tokens"]
    assert bare.input_tokens < count.input_tokens


async def test_every_error_has_anthropics_envelope(gateway: Running) -> None:
    good = ask_messages({"content": "x"})
    for change, status, kind in (
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"messages": "hello"}, 400, "invalid_request_error"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            400,
            "invalid_request_error",
        ),
        ({"container": "abc"}, 400, "invalid_request_error"),
        ({"model": "unknown"}, 404, "not_found_error"),
    ):
        for stream in (True, False):
            body = {**good, **change, "stream": stream}
            response = await gateway.client.post(MESSAGES, json=body)
            assert response.status_code == status, response.text
            assert response.json()["type"] == "error"
            assert response.json()["error"]["type"] == kind
            (name,) = change
            assert name in response.json()["error"]["message"] or name == "model"
    malformed = await gateway.client.post(MESSAGES, content=b"{", headers=JSON)
    assert malformed.json()["error"]["type"] == "invalid_request_error"
    wrong_method = await gateway.client.get(MESSAGES)
    assert wrong_method.status_code == 405
    assert wrong_method.json()["type"] == "error"


async def test_the_key_of_an_anthropic_client_reaches_the_model_server(start: Start) -> None:
    async with ScriptedUpstream(api_key="secret") as guarded:
        gateway = await start(guarded.url, upstream={"url": guarded.url, "api_key": "secret"})
        ours = await gateway.client.post(MESSAGES, json=ask_messages({"content": "x"}))
        assert ours.status_code == 200
    headers = gateway.gateway.client.headers({"x-api-key": "theirs"})
    assert headers["authorization"] == "Bearer secret"
    await gateway.gateway.store.aclose()  # an SQLite file has one gateway at a time
    plain = await start()
    headers = plain.gateway.client.headers({"x-api-key": "theirs"})
    assert headers["authorization"] == "Bearer theirs"


async def test_an_answer_that_the_client_began_is_gone_on_with(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    messages = [
        {"role": "user", "content": f"Who? {script({'content': 'It is Berlin.'})}"},
        {"role": "assistant", "content": "It is"},
    ]
    body = {**ask_messages({"content": ""}), "messages": messages}
    message = await said(gateway, body, stream=False)
    sent = json.loads(upstream.stats.bodies[-1])
    assert sent["continue_final_message"] is True
    assert sent["add_generation_prompt"] is False
    assert message["content"][-1]["text"].strip() == "Berlin."


async def test_the_tools_are_sent_as_chat_sends_them(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    body = ask_messages(
        {"content": "x"}, tool_choice={"type": "auto", "disable_parallel_tool_use": True}
    )
    await said(gateway, body, stream=False)
    sent = json.loads(upstream.stats.bodies[-1])
    assert sent["tools"] == ask()["tools"]
    assert sent["parallel_tool_calls"] is False
    assert len(ANTHROPIC_TOOLS) == 3

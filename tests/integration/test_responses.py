"""``/v1/responses``: the Responses API in front of the same turns as chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from entrogate_lab.bench.script import script
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.doors import (
    RESPONSES,
    STEPS,
    ask_responses,
    openai_client,
    same_answer,
    streamed,
)
from tests.integration.harness import Running, calling, error_of, eventually, policy_file
from tests.integration.responses import calls_of, go_on, said, text_of, trajectory

ALWAYS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}


REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_a_body_is_what_its_stream_adds_up_to(gateway: Running, step: dict[str, Any]) -> None:
    body = ask_responses(step)
    whole = await said(gateway, body, stream=False)
    folded = await said(gateway, body, stream=True)
    whole["stream"] = folded["stream"] = None
    assert same_answer(folded) == same_answer(whole)
    assert whole["usage"]["input_tokens"] > 0
    assert whole["status"] == "completed"
    calls = [(c["name"], json.loads(c["arguments"])) for c in calls_of(whole)]
    assert calls == [(c["name"], c["arguments"]) for c in step.get("calls", [])]
    assert all(c["call_id"].startswith("call_eg") for c in calls_of(whole))
    kinds = [item["type"] for item in whole["output"]]
    assert ("reasoning" in kinds) == ("reasoning" in step)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_the_sdk_reads_the_stream(gateway: Running, step: dict[str, Any]) -> None:
    body = ask_responses(step)
    async with openai_client(gateway) as client:
        async with client.responses.stream(**body) as stream:
            async for _ in stream:
                pass
            read = await stream.get_final_response()
        whole = await client.responses.create(**body)
    assert read.output_text == whole.output_text
    assert [i.type for i in read.output] == [i.type for i in whole.output]
    assert read.usage == whole.usage


@pytest.mark.parametrize("stream", [True, False])
async def test_a_suppressed_call_never_shows(start: Start, folder: Path, stream: bool) -> None:
    gateway = await start(policy=policy_file(folder, **ALWAYS))
    body = ask_responses(calling("Ada", masked="It is Berlin."))
    answer = await said(gateway, body, stream=stream)
    assert calls_of(answer) == []
    assert text_of(answer).strip() == "It is Berlin."
    (turn,) = (await trajectory(gateway, answer))["turns"]
    assert turn["calls"][0]["decision"]["applied"] == "suppress"
    assert answer["usage"]["output_tokens"] == len(turn["tokens"]["token_ids"])
    named = {**body, "input": "And then?", "previous_response_id": answer["id"]}
    again = await said(gateway, named, stream=stream)
    assert len((await trajectory(gateway, again))["turns"]) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_replayed_call_never_shows(
    upstream: ScriptedUpstream, start: Start, folder: Path, stream: bool
) -> None:
    gateway = await start(policy=policy_file(folder, **REPLAY))
    steps = (calling("Ada"), calling("Ada"), {"content": "It is Berlin."}, {"content": "Yes."})
    body = ask_responses(*steps)
    first = await said(gateway, body, stream=stream)
    second = await said(gateway, go_on(body, first, "Ada lives in Berlin"), stream=stream)
    assert calls_of(second) == []
    assert text_of(second).strip() == "It is Berlin."
    turns = (await trajectory(gateway, second))["turns"]
    assert [t["replayed"] for t in turns] == [False, True, False]
    fetched = (await gateway.client.get(f"{RESPONSES}/{second['id']}")).json()
    assert text_of(fetched).strip() == "It is Berlin."  # of the turn after the replayed call
    # What goes on from it has the client's history, without the replayed round trip.
    named = {**body, "input": "Sure?", "previous_response_id": second["id"]}
    await said(gateway, named, stream=stream)
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_was_cut_short_is_incomplete(gateway: Running, stream: bool) -> None:
    body = ask_responses({"content": "one two three four"}, tools=False, max_output_tokens=3)
    answer = await said(gateway, body, stream=stream)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][-1]["status"] == "incomplete"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_byte(gateway: Running, stream: bool) -> None:
    body = ask_responses({"content": "x", "fault": "error", "status": 500}, stream=stream)
    response = await gateway.client.post(RESPONSES, json=body)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "scripted error"
    assert await gateway.metric("entrogate_requests_total", route=RESPONSES, status="500") == 1


@pytest.mark.parametrize("fault", ["cut", "end", "sse_error", "garbage"])
async def test_an_error_in_mid_stream_is_the_last_event(gateway: Running, fault: str) -> None:
    step = {"content": "one two three four five", "fault": fault, "at": 3}
    body = ask_responses(step, tools=False)
    _, events = await streamed(gateway, RESPONSES, body)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["message"]
    assert failed["id"] == events[0]["response"]["id"]
    async with openai_client(gateway) as client, client.responses.stream(**body) as stream:
        read = [event.type async for event in stream]
    assert read[-1] == "response.failed"


async def test_a_client_that_goes_away_ends_the_turn(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    step = {"content": "one two three", "fault": "stall", "at": 3}
    body = ask_responses(step, tools=False, stream=True)
    async with (
        httpx.AsyncClient(base_url=gateway.url) as client,
        client.stream("POST", RESPONSES, json=body) as response,
    ):
        async for _ in response.aiter_raw():
            break
    await eventually(lambda: upstream.stats.aborted == 1)
    await eventually(lambda: not gateway.gateway.background)
    listed = (await gateway.client.get("/v1/trajectories")).json()["data"]
    assert [t["incomplete_reason"] for t in listed] != [None]


async def test_what_is_not_supported_is_refused_by_name(gateway: Running) -> None:
    good = ask_responses({"content": "x"})
    for change, param in (
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
        ),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["no.such.part"]}, "include"),
        ({"enable_response_messages": True}, "enable_response_messages"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ):
        for stream in (True, False):
            response = await gateway.client.post(
                RESPONSES, json={**good, **change, "stream": stream}
            )
            assert error_of(response, 400)["param"] == param


async def test_the_sdk_gets_its_own_errors(gateway: Running) -> None:
    async with openai_client(gateway) as client:
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="unknown", input="hello")
        with pytest.raises(openai.BadRequestError, match="web_search"):
            await client.responses.create(
                model="scripted", input="hello", tools=[{"type": "web_search"}]
            )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_debug_answer_says_what_was_decided(gateway: Running, stream: bool) -> None:
    body = {**ask_responses(calling("Ada")), "stream": stream}
    headers = {"x-entrogate-debug": "1"}
    if stream:
        _, events = await streamed(gateway, RESPONSES, body, **headers)
        answer = events[-1]["response"]
    else:
        answer = (await gateway.client.post(RESPONSES, json=body, headers=headers)).json()
    (turn,) = answer["entrogate"]["turns"]
    assert turn["decisions"][0]["call_id"] == calls_of(answer)[0]["call_id"]


async def test_text_formats_and_settings_go_on(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "city", "schema": schema, "strict": True}
    fields = {
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
        "seed": 7,
        "text": {"format": form},
    }
    await said(gateway, ask_responses({"content": "{}"}, tools=False, **fields), stream=False)
    sent = json.loads(upstream.stats.bodies[-1])
    wanted = {"name": "city", "schema": schema, "strict": True}
    assert sent["response_format"] == {"type": "json_schema", "json_schema": wanted}
    assert (sent["reasoning_effort"], sent["temperature"], sent["seed"]) == ("low", 0.5, 7)
    assert script({"content": "{}"}) in sent["messages"][0]["content"]

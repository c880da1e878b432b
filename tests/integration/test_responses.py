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
    ask_responses,
    folded_response,
    openai_client,
    same_answer,
    streamed,
)
from tests.integration.harness import (
    Running,
    ask,
    calling,
    error_of,
    eventually,
    follow_up,
    message_of,
    policy_file,
)

ALWAYS: dict[str, Any] = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}
STEPS: dict[str, dict[str, Any]] = {
    "text": {"content": "It is Berlin."},
    "reasoned": {"reasoning": "Let me think", "content": "It is Berlin."},
    "one call": calling("Ada", content="Let me see."),
    "parallel calls": calling("Ada", "Bo"),
    "nothing": {"content": ""},
}


async def said(gateway: Running, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    """The response, folded from a stream or whole."""
    if stream:
        response, events = await streamed(gateway, RESPONSES, body)
        assert response.status_code == 200, events
        return folded_response(events)
    response = await gateway.client.post(RESPONSES, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def calls_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "function_call"]


def text_of(response: dict[str, Any]) -> str:
    items = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in items for part in item["content"])


def results(response: dict[str, Any], *outputs: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call_output", "call_id": call["call_id"], "output": output}
        for call, output in zip(calls_of(response), outputs, strict=True)
    ]


def go_on(body: dict[str, Any], response: dict[str, Any], *outputs: str) -> dict[str, Any]:
    """The next request of an agent that keeps the conversation itself."""
    before = body["input"]
    if isinstance(before, str):
        before = [{"role": "user", "content": before}]
    return {**body, "input": [*before, *response["output"], *results(response, *outputs)]}


async def trajectory(gateway: Running, response: dict[str, Any]) -> dict[str, Any]:
    """The trajectory that the response's own id names, by way of its feedback."""
    given = await gateway.client.post(
        "/v1/feedback", json={"response_id": response["id"], "score": 1.0}
    )
    assert given.status_code == 200, given.text
    found = await gateway.client.get(
        f"/v1/trajectories/{given.json()['trajectory_id']}", params={"tokens": "true"}
    )
    return found.json()


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


@pytest.mark.parametrize("kept_by", ["client", "gateway"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_recorded_is_what_chat_would_have_recorded(
    gateway: Running, stream: bool, kept_by: str
) -> None:
    """Whether the client sends the conversation back or names it, over an agent's turns."""
    steps = (calling("Ada", "Bo"), calling("Cy"), {"reasoning": "Aha", "content": "42."})
    chat = ask(*steps, text="Who?", max_completion_tokens=4096)
    while True:
        response = await gateway.chat(chat)
        chatted = message_of(response)
        if "tool_calls" not in chatted:
            break
        chat = follow_up(chat, chatted, *("found" for _ in chatted["tool_calls"]))
    wanted = await gateway.trajectory(response, tokens="true")
    body = ask_responses(*steps, max_output_tokens=4096)
    while calls_of(answer := await said(gateway, body, stream=stream)):
        found = ["found"] * len(calls_of(answer))
        if kept_by == "client":
            body = go_on(body, answer, *found)
        else:
            body["previous_response_id"] = answer["id"]
            body["input"] = results(answer, *found)
    got = await trajectory(gateway, answer)
    assert len(got["turns"]) == len(wanted["turns"]) == 3
    for one, other in zip(got["turns"], wanted["turns"], strict=True):
        assert one["tokens"]["token_ids"] == other["tokens"]["token_ids"]
        assert len(one["tokens"]["prompt_token_ids"]) == len(other["tokens"]["prompt_token_ids"])
        assert one["segment"] == other["segment"]
        assert one["spans"] == other["spans"]
        assert one["n_messages"] == other["n_messages"]
        assert one["branch_index"] == other["branch_index"] == 0
        assert [(c["name"], c["arguments"], c["decision"]) for c in one["calls"]] == [
            (c["name"], c["arguments"], c["decision"]) for c in other["calls"]
        ]
        assert [r["content"] for r in one["results"]] == [r["content"] for r in other["results"]]
        assert one["capture_gap"] is None
        assert one["params"].pop("door")["name"] == "responses"
        assert one["params"] == other["params"]
    assert got["toolsets"] == wanted["toolsets"]
    assert got["turns"][1]["change"] == wanted["turns"][1]["change"]


@pytest.mark.both_stores
async def test_instructions_are_of_one_request_only(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    """As at OpenAI: a request that goes on has its own instructions, or none."""
    body = ask_responses({"content": "One."}, {"content": "Two."}, {"content": "Three."})
    first = await said(gateway, {**body, "instructions": "Be brief."}, stream=False)
    thanks: dict[str, Any] = {**body, "input": "And then?", "previous_response_id": first["id"]}
    second = await said(gateway, thanks, stream=False)
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "user"]
    assert text_of(second) == "Two."
    thanks |= {"previous_response_id": second["id"], "instructions": "Be long."}
    third = await said(gateway, thanks, stream=True)
    sent = json.loads(upstream.stats.bodies[-1])["messages"]
    assert [m["role"] for m in sent] == ["system", *["user", "assistant"] * 2, "user"]
    assert sent[0]["content"] == "Be long."
    assert text_of(third) == "Three."
    turns = (await trajectory(gateway, third))["turns"]
    assert [t["parent_id"] for t in turns] == [None, turns[0]["id"], turns[1]["id"]]
    # Where the instructions came or went, the whole history was recorded anew.
    assert [len(t["messages"]) for t in turns] == [2, 3, 6]


@pytest.mark.both_stores
async def test_a_fork_goes_on_from_the_response_it_names(
    upstream: ScriptedUpstream, gateway: Running
) -> None:
    body = ask_responses({"content": "One."}, {"content": "Two."})
    first = await said(gateway, body, stream=False)
    named: dict[str, Any] = {**body, "previous_response_id": first["id"]}
    for question in ("And then?", "And else?"):
        await said(gateway, {**named, "input": question}, stream=False)
        sent = json.loads(upstream.stats.bodies[-1])["messages"]
        assert [m["content"] for m in sent[1:]] == ["One.", question]
    turns = (await trajectory(gateway, first))["turns"]
    assert [t["parent_id"] for t in turns] == [None, turns[0]["id"], turns[0]["id"]]


async def test_only_a_stored_response_can_be_gone_on_from(gateway: Running) -> None:
    body = ask_responses({"content": "One."})
    first = await said(gateway, {**body, "store": False}, stream=False)
    chat = (await gateway.chat(ask({"content": "One."}))).json()
    for name in (first["id"], chat["id"], "resp_unknown"):
        refused = await gateway.client.post(RESPONSES, json={**body, "previous_response_id": name})
        error = error_of(refused, 404)
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"


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
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_a_response_can_be_fetched_again(
    gateway: Running, step: dict[str, Any], stream: bool
) -> None:
    body = ask_responses(
        step,
        instructions="Be brief.",
        temperature=0.5,
        tool_choice="auto",
        metadata={"a": "b"},
        text={"format": {"type": "text"}},
        max_output_tokens=4096,
    )
    first = await said(gateway, body, stream=stream)
    named = {**body, "input": "And then?", "previous_response_id": first["id"]}
    second = await said(gateway, named, stream=stream)
    for answer in (first, second):
        fetched = (await gateway.client.get(f"{RESPONSES}/{answer['id']}")).json()
        for name in ("input_tokens_details", "output_tokens_details"):  # not recorded
            fetched["usage"].pop(name)
            answer["usage"].pop(name)
        for name in ("created_at", "completed_at"):  # the model server's clock, and ours
            assert abs(fetched.pop(name) - answer.pop(name)) <= 1
        assert fetched == answer
    async with openai_client(gateway) as client:
        assert (await client.responses.retrieve(first["id"])).id == first["id"]


@pytest.mark.both_stores
async def test_only_a_stored_response_can_be_fetched(gateway: Running) -> None:
    body = ask_responses({"content": "One."}, tools=False)
    hidden = await said(gateway, {**body, "store": False}, stream=False)
    cut = ask_responses({"content": "one two three", "fault": "cut", "at": 2}, tools=False)
    _, events = await streamed(gateway, RESPONSES, cut)
    for name in (hidden["id"], "resp_unknown"):
        refused = await gateway.client.get(f"{RESPONSES}/{name}")
        assert error_of(refused, 404)["code"] == "response_not_found"
    failed = events[-1]["response"]
    fetched = (await gateway.client.get(f"{RESPONSES}/{failed['id']}")).json()
    assert fetched["status"] == "failed"
    assert fetched["error"]["message"]
    assert text_of(fetched) == text_of(failed)


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


@pytest.mark.both_stores
async def test_a_response_is_erased_with_its_trajectory(gateway: Running) -> None:
    body = ask_responses({"content": "One."}, {"content": "Two."})
    first = await said(gateway, body, stream=False)
    kept = await said(gateway, ask_responses({"content": "Else."}), stream=False)
    thanks = {**body, "input": "And?", "previous_response_id": first["id"]}
    second = await said(gateway, thanks, stream=True)
    async with openai_client(gateway) as client:
        await client.responses.delete(second["id"])
    for gone in (first, second):
        refused = await gateway.client.get(f"{RESPONSES}/{gone['id']}")
        assert error_of(refused, 404)["code"] == "response_not_found"
    assert (await gateway.client.get(f"{RESPONSES}/{kept['id']}")).status_code == 200
    again = await gateway.client.delete(f"{RESPONSES}/{second['id']}")
    assert error_of(again, 404)["code"] == "response_not_found"
    deleted = await gateway.client.delete(f"{RESPONSES}/{kept['id']}")
    assert deleted.json() == {"id": kept["id"], "object": "response", "deleted": True}

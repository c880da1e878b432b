"""Responses that the gateway keeps: gone on from, forked, fetched again and erased."""

from __future__ import annotations

import json
from typing import Any

import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.doors import RESPONSES, STEPS, ask_responses, openai_client, streamed
from tests.integration.harness import Running, ask, calling, error_of, follow_up, message_of
from tests.integration.responses import calls_of, go_on, results, said, text_of, trajectory


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

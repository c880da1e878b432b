"""Which trajectory a turn belongs to: by header, by minted ids, by what was said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.conftest import Start
from tests.integration.harness import (
    Running,
    ask,
    calling,
    follow_up,
    message_of,
    message_of_stream,
)

pytestmark = pytest.mark.both_stores

DIALOGUE = (calling("Ada"), calling("Bo"), {"content": "The answer is 42."})


async def run_agent(
    gateway: Running, body: dict[str, Any], *, stream: bool = False, **headers: str
) -> list[str]:
    """Play a dialogue to its end; the trajectory ids of its turns."""
    ids: list[str] = []
    while True:
        if stream:
            response, raw = await gateway.stream(body, **headers)
            message = message_of_stream(raw)
        else:
            response = await gateway.chat(body, **headers)
            message = message_of(response)
        ids.append(response.headers["x-entrogate-trajectory-id"])
        calls = message.get("tool_calls") or []
        if not calls:
            return ids
        body = follow_up(body, message, *(f"result of {c['id']}" for c in calls))
        await asyncio.sleep(0)


async def get(gateway: Running, trajectory_id: str) -> dict[str, Any]:
    return (await gateway.client.get(f"/v1/trajectories/{trajectory_id}")).json()


@pytest.mark.parametrize("stream", [True, False])
async def test_minted_ids_link(gateway: Running, stream: bool) -> None:
    ids = await run_agent(gateway, ask(*DIALOGUE), stream=stream)
    assert len(ids) == 3
    assert len(set(ids)) == 1
    found = await get(gateway, ids[0])
    turns = found["turns"]
    assert [t["turn_index"] for t in turns] == [0, 1, 2]
    assert [t["parent_id"] for t in turns] == [None, turns[0]["id"], turns[1]["id"]]
    assert {t["branch_index"] for t in turns} == {0}
    results = [r["content"] for t in turns for r in t["results"]]
    calls = [c["id"] for t in turns for c in t["calls"]]
    assert results == [f"result of {c}" for c in calls]


async def test_many_trajectories_at_once(gateway: Running) -> None:
    """Equal dialogues of one client at the same time stay apart."""
    body = ask(*DIALOGUE)
    runs = await asyncio.gather(*(run_agent(gateway, body, stream=i % 2 == 0) for i in range(24)))
    assert all(len(ids) == 3 and len(set(ids)) == 1 for ids in runs)
    assert len({ids[0] for ids in runs}) == 24
    for ids in runs:
        assert len((await get(gateway, ids[0]))["turns"]) == 3


async def test_the_header_wins(gateway: Running) -> None:
    ids = await run_agent(gateway, ask(*DIALOGUE), x_entrogate_trajectory_id="mine-1")
    assert set(ids) == {"mine-1"}
    found = await get(gateway, "mine-1")
    assert len(found["turns"]) == 3


async def test_metadata_and_task(gateway: Running) -> None:
    body = ask({"content": "Yes."}, metadata={"trajectory_id": "mine-2", "task_id": "task-9"})
    response = await gateway.chat(body)
    assert response.headers["x-entrogate-trajectory-id"] == "mine-2"
    await gateway.chat(ask({"content": "No."}), x_entrogate_task_id="task-9")
    listed = (await gateway.client.get("/v1/trajectories?task_id=task-9")).json()["data"]
    assert len(listed) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_without_tools_links_by_what_was_said(gateway: Running, stream: bool) -> None:
    body = ask({"content": "One."}, {"content": "Two."}, tools=False)
    if stream:
        first, raw = await gateway.stream(body)
        message = message_of_stream(raw)
    else:
        first = await gateway.chat(body)
        message = message_of(first)
    body["messages"] = [*body["messages"], message, {"role": "user", "content": "And then?"}]
    second = await gateway.chat(body)
    assert second.headers["x-entrogate-trajectory-id"] == first.headers["x-entrogate-trajectory-id"]
    turns = (await gateway.trajectory(second))["turns"]
    assert turns[1]["parent_id"] == turns[0]["id"]


async def test_a_chat_without_the_reasoning_still_links(gateway: Running) -> None:
    """Most SDKs drop `reasoning` from the history that they send back."""
    body = ask({"reasoning": "hm", "content": "One."}, tools=False)
    first = await gateway.chat(body)
    message = {"role": "assistant", "content": message_of(first)["content"]}
    body["messages"] = [*body["messages"], message, {"role": "user", "content": "And then?"}]
    second = await gateway.chat(body)
    assert second.headers["x-entrogate-trajectory-id"] == first.headers["x-entrogate-trajectory-id"]


async def test_equal_first_requests_are_two_trajectories(gateway: Running) -> None:
    body = ask({"content": "Yes."})
    first, second = [await gateway.chat(body) for _ in range(2)]
    assert first.headers["x-entrogate-trajectory-id"] != second.headers["x-entrogate-trajectory-id"]


async def test_a_fork_is_a_branch(gateway: Running) -> None:
    """Two continuations of one turn: one trajectory, the same parent, two branches."""
    body = ask(*DIALOGUE)
    message = message_of(await gateway.chat(body))
    answers = [await gateway.chat(follow_up(body, message, r)) for r in ("found", "not found")]
    ids = {a.headers["x-entrogate-trajectory-id"] for a in answers}
    assert len(ids) == 1
    root, one, two = (await gateway.trajectory(answers[0]))["turns"]
    assert one["parent_id"] == two["parent_id"] == root["id"]
    assert one["branch_index"] != two["branch_index"]


async def test_a_prefix_that_breaks_is_a_branch(gateway: Running) -> None:
    """Without the reasoning in the history the prompt no longer starts with what was sampled."""
    body = ask(*DIALOGUE)
    message = message_of(await gateway.chat(body))
    kept = await gateway.chat(follow_up(body, message, "found"))
    _, next_turn = (await gateway.trajectory(kept))["turns"]
    assert next_turn["branch_index"] == 0
    bare = {k: v for k, v in message.items() if k != "reasoning"}
    broken = await gateway.chat(follow_up(body, bare, "found"))
    turns = (await gateway.trajectory(broken))["turns"]
    assert len(turns) == 3
    assert turns[2]["parent_id"] == turns[0]["id"]
    assert turns[2]["branch_index"] == 1


async def test_every_choice_can_be_gone_on_with(gateway: Running) -> None:
    body = ask([calling("Ada"), calling("Bo"), calling("Cy")], n=3, temperature=1.0)
    response = await gateway.chat(body)
    messages = [c["message"] for c in response.json()["choices"]]
    after = [
        await gateway.chat(follow_up({**body, "n": 1}, {"role": "assistant", **m}, "found"))
        for m in messages
    ]
    assert len({a.headers["x-entrogate-trajectory-id"] for a in after}) == 1
    turns = (await gateway.trajectory(response))["turns"]
    parents = {t["id"]: t["choice_index"] for t in turns if t["parent_id"] is None}
    followed = [parents[t["parent_id"]] for t in turns if t["parent_id"] is not None]
    assert sorted(followed) == [0, 1, 2]


async def test_linkage_survives_a_restart_and_a_cold_cache(start: Start, gateway: Running) -> None:
    body = ask(*DIALOGUE)
    first = await gateway.chat(body)
    await gateway.gateway.store.aclose()  # an SQLite file has one gateway at a time
    other = await start()
    second = await other.chat(follow_up(body, message_of(first), "found"))
    assert second.headers["x-entrogate-trajectory-id"] == first.headers["x-entrogate-trajectory-id"]

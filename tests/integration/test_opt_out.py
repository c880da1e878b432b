"""A client's wish not to be recorded: the turn is gated and answered, and nothing of it is kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from entrogate.store.schema import metadata
from tests.integration.conftest import Start
from tests.integration.doors import MESSAGES, RESPONSES, ask_messages, ask_responses
from tests.integration.harness import (
    CHAT,
    SURE,
    Running,
    ask,
    calling,
    error_of,
    follow_up,
    message_of,
    policy_file,
)

SECRET = "Zebulon-Quartz-7431"
ASKS = {CHAT: ask, MESSAGES: ask_messages, RESPONSES: ask_responses}
WAYS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"store": False}, {}),
    ({"store": "Off"}, {}),
    ({}, {"x-entrogate-record": "none"}),
    ({"store": True}, {"x-entrogate-record": "none"}),
]


def rows(url: str) -> dict[str, int]:
    with closing(Database(StoreSettings(url=url))) as database, database.reading() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


async def post(
    gateway: Running, door: str, body: dict[str, Any], headers: dict[str, str], *, stream: bool
) -> httpx.Response:
    body = {**body, "stream": True} if stream else body
    answer = await gateway.client.post(door, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("door", ASKS)
async def test_nothing_of_it_is_stored(
    start: Start, store_url: str, folder: Path, door: str, stream: bool
) -> None:
    """Gated as ever, counted in the metrics, and the store is as it was, to the byte of a text."""
    rule = {"defaults": {"threshold": 9.0}, "tools": {"lookup": None}}
    gateway = await start(policy=policy_file(folder, **rule))
    before = rows(store_url)
    for fields, headers in WAYS:
        step = calling(SECRET, confidence=SURE, masked=f"It is {SECRET}.")
        body = ASKS[door](step, text=SECRET) if door == CHAT else ASKS[door](step)
        answer = await post(gateway, door, {**body, **fields}, headers, stream=stream)
        assert "x-entrogate-trajectory-id" not in answer.headers
        assert "lookup" not in answer.text.replace('"name":"lookup"', "")
        assert "Zebulon" in answer.text  # a token of it
    assert rows(store_url) == before
    assert (await gateway.client.get("/v1/trajectories")).json()["data"] == []
    data = b"".join(file.read_bytes() for file in folder.glob("store.db*"))
    assert SECRET.encode() not in data
    decided = {"tool": "lookup", "decision": "suppress"}
    assert await gateway.metric("entrogate_tool_calls_total", **decided) == len(WAYS)


async def test_the_header_wins(gateway: Running) -> None:
    full = {"x-entrogate-record": "full"}
    answer = await post(gateway, CHAT, ask({"content": "Hi."}, store=False), full, stream=False)
    assert len((await gateway.trajectory(answer))["turns"]) == 1
    bad = await gateway.client.post(
        CHAT, json=ask({"content": "Hi."}), headers={"x-entrogate-record": "no"}
    )
    assert error_of(bad, 400)["param"] == "x-entrogate-record"


async def test_a_response_that_is_not_stored_is_unknown(gateway: Running) -> None:
    for fields, headers in WAYS:
        body = ask_responses({"content": "Hi."}, {"content": "Ho."}, **fields)
        answer = (await post(gateway, RESPONSES, body, headers, stream=False)).json()
        assert answer["store"] is False
        error_of(await gateway.client.get(f"{RESPONSES}/{answer['id']}"), 404)
        after = {**ask_responses(), "previous_response_id": answer["id"], "input": "And?"}
        error = error_of(await gateway.client.post(RESPONSES, json=after), 404)
        assert error["code"] == "previous_response_not_found"
        given = {"response_id": answer["id"], "score": 1.0}
        error_of(await gateway.client.post("/v1/feedback", json=given), 404)


async def test_a_replay_and_a_debug_object(start: Start, store_url: str, folder: Path) -> None:
    """The turn's legs work as ever, although none of them is stored."""
    rule = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}
    gateway = await start(policy=policy_file(folder, **rule))
    before = rows(store_url)
    body = ask(calling("Ada"), calling("Ada"), {"content": "Berlin."}, store=False)
    first = await gateway.chat(body)
    second = await gateway.chat(follow_up(body, message_of(first), "found"), x_entrogate_debug="1")
    assert message_of(second)["content"].endswith("Berlin.")
    debug = second.json()["entrogate"]
    assert debug["trajectory_id"] is None
    assert [turn["replayed"] for turn in debug["turns"]] == [True, False]
    assert rows(store_url) == before


async def test_turns_around_it_are_one_trajectory(gateway: Running) -> None:
    """What a later request brings along of it is that request's own."""
    body = ask(calling("Ada"), calling("Bo"), {"content": "Done."})
    first = await gateway.chat(body)
    body = follow_up(body, message_of(first), "found")
    hidden = await gateway.chat({**body, "store": False})
    third = await gateway.chat(follow_up(body, message_of(hidden), "found too"))
    assert len((await gateway.trajectory(third))["turns"]) == 2
    assert third.headers["x-entrogate-trajectory-id"] == first.headers["x-entrogate-trajectory-id"]

"""Requests with as many tools, calls and ids as are allowed are served, and look up little."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.harness import CHAT, Running, ask, calling, error_of

JSON = {"content-type": "application/json"}


def call(number: int) -> dict[str, Any]:
    function = {"name": f"f{number}", "arguments": f'{{"a":{number}}}'}
    return {"id": f"call_eg{number:024x}", "type": "function", "function": function}


def history(n_calls: int) -> list[dict[str, Any]]:
    said = {"role": "assistant", "content": None, "tool_calls": [call(i) for i in range(n_calls)]}
    return [said, {"role": "tool", "tool_call_id": call(0)["id"], "content": "x"}]


async def test_twenty_thousand_made_up_ids(gateway: Running) -> None:
    """2.5 MB: the ids are looked up in one query, the body goes upstream in pieces."""
    body = ask(calling("Ada"))
    body["messages"] += history(20_000)
    sent = json.dumps(body).encode()
    response = await gateway.client.post(CHAT, content=sent, headers=JSON)
    assert response.status_code == 200, response.text


async def test_three_thousand_tools_and_calls(gateway: Running) -> None:
    body = ask(calling("Ada"), calling("Bo"))
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(3_000)]
    body["tools"] = [*body["tools"], *tools]
    body["messages"] += history(3_000)
    sent = json.dumps(body).encode()
    response = await gateway.client.post(CHAT, content=sent, headers=JSON)
    assert response.status_code == 200, response.text
    [record] = (await gateway.trajectory(response))["turns"]
    assert record["calls"][0]["features"]["calls_before"] == 3_000


async def test_one_more_is_too_many(gateway: Running) -> None:
    body = ask(calling("Ada"))
    body["messages"] += history(20_001)
    sent = json.dumps(body).encode()
    response = await gateway.client.post(CHAT, content=sent, headers=JSON)
    assert error_of(response, 400)["param"] == "messages[1].tool_calls"

"""Asking for responses, and what is in them."""

from __future__ import annotations

from typing import Any

from tests.integration.doors import RESPONSES, folded_response, streamed
from tests.integration.harness import Running


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

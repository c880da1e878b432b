"""Bad requests: a clear error, nothing lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import (
    CHAT,
    JSON,
    Running,
    ask,
    error_of,
)

TEXT = {"content": "Plain text, nothing else, but long enough to break in the middle."}


@pytest.mark.parametrize("body", [b"{not json", b"", b"[1]", b'"text"', b"\xff\xfe"])
async def test_malformed_json(upstream: ScriptedUpstream, gateway: Running, body: bytes) -> None:
    before = upstream.stats.requests
    response = await gateway.client.post(CHAT, content=body, headers=JSON)
    error_of(response, 400)
    assert upstream.stats.requests == before
    assert await gateway.metric("entrogate_requests_total", route=CHAT, status="400") == 1


@pytest.mark.parametrize("messages", [None, "text", {}, ["text"], [None]])
async def test_messages_of_the_wrong_shape(gateway: Running, messages: object) -> None:
    response = await gateway.chat({"model": "scripted", "messages": messages})
    assert error_of(response, 400)["param"] == "messages"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -1},
        {"logprobs": True, "top_logprobs": 50},
        {"messages": []},
        {"max_tokens": 10**6},
        {"n": 2, "temperature": 0},
        {"logit_bias": {"99999999": 1}},
        {"model": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_refusals_of_vllm_pass_as_they_are(
    upstream: ScriptedUpstream, gateway: Running, change: dict[str, Any]
) -> None:
    body = ask(TEXT, **change) if "messages" not in change else ask(TEXT) | change
    if "model" in change:
        body["model"] = change["model"]
    async with httpx.AsyncClient() as direct:
        wanted = await direct.post(upstream.url + CHAT, json=body)
    assert wanted.status_code in (400, 404)
    for stream in (False, True):
        got = await gateway.chat({**body, "stream": stream})
        assert (got.status_code, got.content) == (wanted.status_code, wanted.content)
    assert (await gateway.client.get("/v1/trajectories")).json()["data"] == []


@pytest.mark.parametrize("declared", [True, False], ids=["content_length", "chunked"])
async def test_oversized_body(upstream: ScriptedUpstream, start: Start, declared: bool) -> None:
    gateway = await start(serve={"body_limit_bytes": 4096})
    before = upstream.stats.requests
    raw = json.dumps(ask(TEXT, text="x" * 10_000)).encode()

    async def parts() -> AsyncIterator[bytes]:
        for i in range(0, len(raw), 1000):
            yield raw[i : i + 1000]

    for path in (CHAT, "/v1/completions"):
        response = await gateway.client.post(
            path, content=raw if declared else parts(), headers=JSON
        )
        assert error_of(response, 413)["code"] == "body_too_large"
    assert upstream.stats.requests == before
    assert (await gateway.chat(ask(TEXT))).status_code == 200


async def test_unknown_routes(gateway: Running) -> None:
    error_of(await gateway.client.get("/v1/nothing"), 404)
    error_of(await gateway.client.get(CHAT), 405)


async def test_ids_that_cannot_be_stored(gateway: Running) -> None:
    response = await gateway.chat(ask(TEXT), x_entrogate_trajectory_id="a/b")
    error_of(response, 400)
    error_of(await gateway.chat(ask(TEXT), x_entrogate_task_id="x" * 200), 400)


async def test_mode_header(start: Start) -> None:
    closed = await start()
    response = await closed.chat(ask(TEXT), x_entrogate_mode="enforce")
    assert error_of(response, 403)["code"] == "mode_not_allowed"


async def test_mode_header_with_an_unknown_mode(start: Start) -> None:
    gateway = await start(gate={"allow_mode_header": True})
    error_of(await gateway.chat(ask(TEXT), x_entrogate_mode="fast"), 400)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"trajectory_id": "traj_unknown", "score": 0.5}, 404),
        ({"response_id": "chatcmpl-unknown", "score": 0.5}, 404),
        ({"tool_call_id": "call_egunknown", "score": 0.5}, 404),
        ({"trajectory_id": "KNOWN", "score": 1.5}, 400),
        ({"trajectory_id": "KNOWN", "score": -0.1}, 400),
        ({"trajectory_id": "KNOWN", "score": "good"}, 400),
        ({"trajectory_id": "KNOWN"}, 400),
        ({"trajectory_id": "KNOWN", "answer": "42"}, 400),
        ({"trajectory_id": "KNOWN", "response_id": "x", "score": 1}, 400),
        ({"score": 1}, 400),
        ({"trajectory_id": "KNOWN", "score": 1, "points": 3}, 400),
    ],
)
async def test_feedback_that_cannot_be_taken(
    gateway: Running, body: dict[str, Any], status: int
) -> None:
    known = (await gateway.chat(ask(TEXT))).headers["x-entrogate-trajectory-id"]
    sent = {k: known if v == "KNOWN" else v for k, v in body.items()}
    error_of(await gateway.client.post("/v1/feedback", json=sent), status)
    found = (await gateway.client.get(f"/v1/trajectories/{known}")).json()
    assert found["feedback"] == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=100000", "cursor=nonsense", "mode=fast", "since=yesterday"]
)
async def test_queries_that_make_no_sense(gateway: Running, query: str) -> None:
    error_of(await gateway.client.get(f"/v1/trajectories?{query}"), 400)


async def test_unknown_trajectory(gateway: Running) -> None:
    error_of(await gateway.client.get("/v1/trajectories/traj_unknown"), 404)


async def test_a_large_body_for_many_choices(upstream: ScriptedUpstream, gateway: Running) -> None:
    """It is recorded with each of them."""
    before = upstream.stats.requests
    body = ask(TEXT, text="x" * 2**20)
    error = error_of(await gateway.chat({**body, "n": 64}), 400)
    assert (error["param"], "at most 63" in error["message"]) == ("n", True)
    assert upstream.stats.requests == before
    assert (await gateway.chat({**body, "n": 2})).status_code == 200


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/v1/responses", "input", {"input": [{"role": "user", "content": "a"}] * 20_001}),
        (
            "/v1/messages/count_tokens",
            "messages",
            {"messages": [{"role": "user", "content": "a"}] * 20_001},
        ),
    ],
)
async def test_too_many_messages_of_another_api(
    gateway: Running, path: str, param: str, body: dict[str, Any]
) -> None:
    refused = await gateway.client.post(path, json={"model": "scripted", **body})
    assert refused.status_code == 400
    assert f"{param}: 20001 entries" in refused.json()["error"]["message"]


@pytest.mark.parametrize("before", [2**63, -(2**63) - 1, 10**30])
async def test_an_audit_before_any_number(gateway: Running, before: int) -> None:
    page = await gateway.client.get("/v1/audit", params={"before": before})
    assert page.status_code == 200, page.text
    assert bool(page.json()["data"]) is (before > 0)


@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("value", ["nan", "inf"])
async def test_a_time_of_the_audit_is_a_number(gateway: Running, field: str, value: str) -> None:
    refused = await gateway.client.get("/v1/audit", params={field: value})
    assert error_of(refused, 400)["param"] == field


@pytest.mark.parametrize("tokens", [["1"], [None], [1.5], [True], [[1]], {}])
async def test_detokenize_takes_numbers(gateway: Running, tokens: Any) -> None:
    answer = await gateway.client.post("/detokenize", json={"model": "scripted", "tokens": tokens})
    assert answer.status_code == 400, answer.text

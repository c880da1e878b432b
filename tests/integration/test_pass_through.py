"""Routes that cross to the model server: unchanged, within limits, never a 5xx of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.integration.conftest import Start
from tests.integration.harness import Running, error_of
from tests.integration.raw_upstream import http, json_answer, raw_upstream

POSTS = ("/v1/embeddings", "/tokenize", "/detokenize", "/v1/completions")
GETS = ("/version", "/v1/models", "/v1/models/raw")
EVERY = [*(("POST", path) for path in POSTS), *(("GET", path) for path in GETS)]
SAID = {"object": "something", "data": [1.5, None, "é"]}

JSON = {"content-type": "application/json"}


def answering(answer: Any) -> dict[str, Any]:
    return dict.fromkeys((*POSTS, *GETS), answer)


@pytest.mark.parametrize(("method", "path"), EVERY)
async def test_request_and_answer_cross_unchanged(start: Start, method: str, path: str) -> None:
    async with raw_upstream(answering(json_answer(SAID, "x-secret: no"))) as upstream:
        gateway = await start(upstream.url)
        body = b'{"model":"raw", "input": "\\u00e9",  "prompt":"a"}' if method == "POST" else b""
        got = await gateway.client.request(method, path, content=body, headers=JSON)
        assert (got.status_code, got.content) == (200, json.dumps(SAID).encode())
        assert got.headers["content-type"] == "application/json"
        assert "x-secret" not in got.headers
        assert (upstream.asked[-1].method, upstream.asked[-1].path) == (method, path)
        assert upstream.asked[-1].json == json.loads(body) if body else True
        pattern = "/v1/models/_model_id:path_" if path.endswith("raw") else path
        name = "entrogate_requests_total"
        assert await gateway.metric(name, route=pattern, status="200") == 1


@pytest.mark.parametrize(("method", "path"), EVERY)
async def test_a_server_without_the_route(start: Start, method: str, path: str) -> None:
    answers = answering(json_answer({"detail": "Not Found"}, status="404 Not Found"))
    async with raw_upstream(answers) as upstream:
        gateway = await start(upstream.url)
        got = await gateway.client.request(
            method, path, content=b"{}" if method == "POST" else b"", headers=JSON
        )
        assert error_of(got, 404) == {
            "message": f"the model server has no {path}",
            "type": "not_found_error",
            "param": None,
            "code": "not_found",
        }


@pytest.mark.parametrize(("method", "path"), EVERY)
async def test_errors_of_the_server_are_counted_and_in_the_envelope(
    start: Start, method: str, path: str
) -> None:
    async with raw_upstream(answering(http(b"<h1>bad", status="502 Bad Gateway"))) as upstream:
        gateway = await start(upstream.url)
        before = await gateway.metric("entrogate_upstream_errors_total", kind="UpstreamStatus")
        for _ in range(3):
            got = await gateway.client.request(method, path, content=b"{}", headers=JSON)
            assert "answered 502: <h1>bad" in error_of(got, 502)["message"]
        after = await gateway.metric("entrogate_upstream_errors_total", kind="UpstreamStatus")
        assert after - before == 3


async def test_an_error_in_an_envelope_stays_as_it_is(start: Start) -> None:
    error = {"error": {"message": "no", "type": "x", "param": None, "code": 400}}
    async with raw_upstream(answering(json_answer(error, status="400 Bad"))) as upstream:
        gateway = await start(upstream.url)
        got = await gateway.client.post("/tokenize", content=b"{}", headers=JSON)
        assert (got.status_code, got.json()) == (400, error)


async def test_a_page_of_another_kind_does_not_reach_a_browser(start: Start) -> None:
    page = http(b"<script>1</script>", "content-type: text/html")
    async with raw_upstream(answering(page)) as upstream:
        gateway = await start(upstream.url)
        got = await gateway.client.get("/version")
        assert error_of(got, 502)["code"] == "upstream_protocol"
        assert "text/html; want JSON" in got.text


async def test_a_broken_body_is_a_502_and_not_half_an_answer(start: Start) -> None:
    async with raw_upstream(answering(http(b'{"a":', length=100))) as upstream:
        gateway = await start(upstream.url)
        got = await gateway.client.post("/v1/embeddings", content=b"{}", headers=JSON)
        assert error_of(got, 502)["code"] == "upstream_unavailable"


@pytest.mark.parametrize(
    "path",
    ["/v1/models/../load_lora_adapter", "/v1/models/%2e%2e/%2e%2e/metrics", "/v1/models/a/./b"],
)
async def test_no_path_leads_out_of_its_route(
    upstream: ScriptedUpstream, gateway: Running, path: str
) -> None:
    import asyncio

    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode()
    )
    head = await reader.readline()
    writer.close()
    assert b" 404 " in head
    async with raw_upstream({}) as seen:
        other = await gateway.client.get(f"{gateway.url}/v1/models/x")
        assert other.status_code == 404
        assert seen.asked == []


async def test_an_id_with_a_slash_and_odd_characters_arrives_as_it_is(start: Start) -> None:
    async with raw_upstream({"/v1/models/Qwen/Qwen3-8B%3Fa%23b": json_answer(SAID)}) as upstream:
        gateway = await start(upstream.url)
        assert (await gateway.client.get("/v1/models/Qwen/Qwen3-8B%3Fa%23b")).json() == SAID


async def test_a_body_beyond_the_limit_is_refused(start: Start) -> None:
    async with raw_upstream(answering(json_answer(SAID))) as upstream:
        gateway = await start(upstream.url, serve={"body_limit_bytes": 2000})
        for path in POSTS:
            got = await gateway.client.post(
                path, content=b'{"input":"' + b"a" * 3000 + b'"}', headers=JSON
            )
            assert error_of(got, 413)["code"] == "body_too_large"


async def test_a_key_without_the_scope_is_refused(start: Start) -> None:
    async with raw_upstream(answering(json_answer(SAID))) as upstream:
        gateway = await start(upstream.url, access={"key": "k" * 20})
        for method, path in EVERY:
            got = await gateway.client.request(method, path, content=b"{}", headers=JSON)
            assert got.status_code == 401, path
            headers = {"authorization": f"Bearer {'k' * 20}"}
            got = await gateway.client.request(
                method, path, content=b"{}", headers={**JSON, **headers}
            )
            assert got.status_code == 200, path

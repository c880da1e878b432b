"""Whatever bytes the model server sends: an answer, or an error that says what was wrong with them.

Never a 500, never a hang, nothing that grows without a bound.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from tests.integration.conftest import Start
from tests.integration.harness import CHAT, Running, error_of, eventually
from tests.integration.raw_upstream import CHAT_BODY, RawUpstream, http, json_answer, raw_upstream

COMPLETIONS = "/v1/completions"
PLAIN = json.dumps(CHAT_BODY).encode()
REFUSED = json_answer({"error": {"message": "no log-probs here"}}, status="400 Bad Request")
ASK = {"model": "raw", "messages": [{"role": "user", "content": "Hi"}]}

CALLING = {
    "index": 0,
    "message": {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
    "finish_reason": "tool_calls",
}
JSON = {"content-type": "application/json"}


def chunk(text: str) -> bytes:
    part = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "raw"}
    return b"data: " + json.dumps(head | {"choices": [part]}).encode() + b"\n\n"


FINISH = (
    b'data: {"id":"c","created":1,"model":"raw","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
STREAM = chunk("Hello") + chunk(".") + FINISH


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def event_stream(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def asked(
    start: Start, answer: Any, *, stream: bool = False, **options: Any
) -> tuple[Running, Any, RawUpstream]:
    async with raw_upstream({CHAT: answer, COMPLETIONS: REFUSED}) as upstream:
        gateway = await start(upstream.url, **options)
        async with asyncio.timeout(30):
            response = await gateway.chat({**ASK, "stream": stream})
        return gateway, response, upstream


def deflated(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(data) + packer.flush()


GOOD = {
    "plain": http(PLAIN),
    "gzip": http(gzip.compress(PLAIN), "content-encoding: gzip"),
    "x-gzip": http(gzip.compress(PLAIN), "Content-Encoding: X-GZIP"),
    "gzip in two members": http(
        gzip.compress(PLAIN[:50]) + gzip.compress(PLAIN[50:]), "content-encoding: gzip"
    ),
    "deflate": http(deflated(PLAIN, zlib.MAX_WBITS), "content-encoding: deflate"),
    "raw deflate": http(deflated(PLAIN, -zlib.MAX_WBITS), "content-encoding: deflate"),
    "identity": http(PLAIN, "content-encoding: identity"),
    "an early hint first": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + http(PLAIN),
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + http(PLAIN),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunked(PLAIN[:20], PLAIN[20:], end=b"0\r\nx-checksum: 1\r\n\r\n")
    ),
    "HTTP/1.0 until the end": b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + PLAIN,
    "a content type in latin-1": http(PLAIN, "content-type: application/json; x=\xe9"),
    "a cookie": http(PLAIN, "set-cookie: a=b; path=/", "set-cookie: ;;;"),
}


@pytest.mark.parametrize("kind", GOOD)
async def test_an_answer_in_an_unusual_form_is_read(start: Start, kind: str) -> None:
    _, response, upstream = await asked(start, GOOD[kind])
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "Hello."
    assert {each.headers["accept-encoding"] for each in upstream.asked} == {"identity"}
    assert not any("cookie" in each.headers for each in upstream.asked)


@pytest.mark.parametrize("kind", ["plain", "chunked", "gzip"])
async def test_a_stream_in_an_unusual_form_is_read(start: Start, kind: str) -> None:
    packed = gzip.compress(STREAM)
    answer = {
        "plain": event_stream(STREAM),
        "chunked": event_stream(
            chunked(*(STREAM[i : i + 7] for i in range(0, len(STREAM), 7))),
            "transfer-encoding: chunked",
        ),
        "gzip": event_stream(packed, "content-encoding: gzip"),
    }[kind]
    _, response, _ = await asked(start, answer, stream=True)
    assert response.status_code == 200
    assert '"content":"Hello"' in response.text.replace('": "', '":"')
    assert response.text.endswith("data: [DONE]\n\n")
    assert "error" not in response.text


BAD = {
    "brotli": (http(b"x", "content-encoding: br"), "compressed with 'br'"),
    "gzip twice": (http(b"x", "content-encoding: gzip, gzip"), "compressed with"),
    "gzip that is none": (http(PLAIN, "content-encoding: gzip"), "says that it is gzip"),
    "gzip cut short": (http(gzip.compress(PLAIN)[:-9], "content-encoding: gzip"), "too early"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP"),
    "a very long header": (http(PLAIN, f"x-long: {'a' * 100_000}"), "does not speak HTTP"),
    "a negative length": (http(PLAIN, length=-5), "does not speak HTTP"),
    "two lengths": (http(PLAIN, "content-length: 7"), "does not speak HTTP"),
    "a body that is too short": (http(PLAIN, length=len(PLAIN) + 10), "broke off"),
    "a body that is too long": (http(PLAIN, length=20), "model server"),
    "chunks that are none": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        "chunk",
    ),
    "chunks that do not end": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nhello",
        "broke off",
    ),
    "nothing": (b"", "broke off"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
    "accepted": (http(b"{}", status="202 Accepted"), "status 202"),
    "status 999": (http(b"{}", status="999 Odd"), "status 999"),
    "status 600": (http(b"{}", status="600 Odd"), "status 600"),
    "switching protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        "status 101",
    ),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "status 304"),
    "JSON of another kind": (http(b"[]"), "no chat completion"),
    "no JSON": (http(b"<html>"), "no chat completion"),
    "two choices with one index": (
        json_answer({**CHAT_BODY, "choices": [CHAT_BODY["choices"][0], CALLING]}),
        "two choices with the same index",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BAD)
async def test_a_damaged_answer_is_a_502_that_says_why(
    start: Start, kind: str, stream: bool
) -> None:
    said, why = BAD[kind]
    gateway, response, _ = await asked(start, said, stream=stream)
    if stream and response.status_code == 200:  # what is wrong shows only in the body
        assert '"error"' in response.text
        assert "upstream" in response.text
        return
    error = error_of(response, 502)
    assert error["code"] in ("upstream_protocol", "upstream_unavailable")
    assert why in error["message"] or (stream and "a stream was asked for" in error["message"])
    assert (await gateway.client.get("/health")).status_code == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/models", "/tokenize"])
async def test_a_redirect_is_not_followed(start: Start, status: int, path: str) -> None:
    async with raw_upstream({path: http(PLAIN)}) as elsewhere:
        target = f"location: {elsewhere.url}{path}"
        moved = http(b"", target, status=f"{status} Moved")
        answers = {CHAT: http(PLAIN), COMPLETIONS: REFUSED, path: moved}
        async with raw_upstream(answers) as upstream:
            gateway = await start(upstream.url, upstream={"api_key": "secret"})
            response = await gateway.chat(ASK)
            if path == CHAT:
                assert f"status {status}, a redirect" in error_of(response, 502)["message"]
            for pass_through in ("/v1/models", "/v1/completions"):
                if path == pass_through:
                    method = "GET" if path == "/v1/models" else "POST"
                    got = await gateway.client.request(method, path, content=b"{}", headers=JSON)
                    assert f"status {status}, a redirect" in error_of(got, 502)["message"]
        assert elsewhere.asked == [], "neither a request nor the API key went there"


async def endless(writer: asyncio.StreamWriter, head: bytes, part: bytes) -> None:
    writer.write(head)
    while True:
        writer.write(part)
        await writer.drain()


async def test_a_body_without_an_end_is_cut_off(start: Start) -> None:
    async def body(writer: asyncio.StreamWriter) -> None:
        await endless(writer, b"HTTP/1.1 200 OK\r\n\r\n" + PLAIN, b" " * 65536)

    gateway, response, _ = await asked(start, body, upstream={"answer_limit_bytes": 2**20})
    error = error_of(response, 502)
    assert error["code"] == "upstream_protocol"
    assert "upstream.answer_limit_bytes (1048576 bytes)" in error["message"]
    assert (await gateway.client.get("/health")).status_code == 200


async def test_a_stream_without_an_end_is_cut_off(start: Start) -> None:
    async def body(writer: asyncio.StreamWriter) -> None:
        await endless(writer, event_stream(b""), chunk("again ") * 100)

    gateway, response, _ = await asked(
        start, body, stream=True, upstream={"answer_limit_bytes": 2**20}
    )
    assert response.status_code == 200
    *_, last = (part for part in response.text.split("\n\n") if part and "[DONE]" not in part)
    assert (
        "upstream.answer_limit_bytes" in json.loads(last.removeprefix("data: "))["error"]["message"]
    )
    assert len(response.content) < 2 * 2**20
    assert await gateway.metric("entrogate_upstream_errors_total", kind="UpstreamProtocol") == 1


async def test_an_event_without_an_end_is_cut_off(start: Start) -> None:
    async def body(writer: asyncio.StreamWriter) -> None:
        await endless(writer, event_stream(b"data: "), b"a" * 65536)

    _, response, _ = await asked(start, body, stream=True, upstream={"answer_limit_bytes": 2**20})
    assert "upstream.answer_limit_bytes" in response.text


async def test_a_small_body_that_decompresses_to_a_large_one_is_cut_off(start: Start) -> None:
    bomb = gzip.compress(b" " * (64 * 2**20))  # 64 KB
    _, response, _ = await asked(
        start, http(bomb, "content-encoding: gzip"), upstream={"answer_limit_bytes": 2**20}
    )
    assert "upstream.answer_limit_bytes" in error_of(response, 502)["message"]


async def test_only_headers_of_ours_reach_the_model_server(start: Start) -> None:
    async with raw_upstream({CHAT: http(PLAIN), COMPLETIONS: REFUSED}) as upstream:
        gateway = await start(upstream.url)
        mine = {
            "accept-encoding": "gzip, br",
            "te": "trailers",
            "cookie": "a=b",
            "x-forwarded-for": "1.2.3.4",
            "authorization": "Bearer mine",
        }
        for path in (CHAT, COMPLETIONS):
            await gateway.client.post(path, json=ASK, headers=mine)
            sent = upstream.asked[-1].headers
            assert sent["host"] == upstream.url.removeprefix("http://")
            assert sent["accept-encoding"] == "identity"
            assert sent["authorization"] == "Bearer mine"
            assert not {"te", "cookie", "x-forwarded-for", "connection"} & sent.keys()


@pytest.mark.parametrize("mine", [None, "Bearer client"])
async def test_a_user_in_the_url_is_sent_as_basic_authentication(
    start: Start, mine: str | None
) -> None:
    async with raw_upstream({CHAT: http(PLAIN), COMPLETIONS: REFUSED}) as upstream:
        gateway = await start(upstream.url.replace("//", "//us%40er:pass@"))
        headers = {} if mine is None else {"authorization": mine}
        response = await gateway.client.post(CHAT, json=ASK, headers=headers)
        assert response.status_code == 200, response.text
        sent = {each.headers["authorization"] for each in upstream.asked}
        assert sent == {"Basic dXNAZXI6cGFzcw=="}


def many_choices(n: int) -> bytes:
    choices = [{**CHAT_BODY["choices"][0], "index": index} for index in range(n)]
    return json.dumps(CHAT_BODY | {"choices": choices}).encode()


async def test_more_choices_than_were_asked_for(start: Start) -> None:
    """Each is recorded with all of the request."""
    gateway, response, _ = await asked(start, http(many_choices(9)))
    assert "more choices" in error_of(response, 502)["message"]
    stored = (await gateway.client.get("/v1/trajectories")).json()["data"]
    assert [each["n_turns"] for each in stored] == [8]


async def test_more_choices_than_were_asked_for_in_a_stream(start: Start) -> None:
    others = [chunk("Bye").replace(b'"index": 0', b'"index": %d' % n) for n in range(1, 9)]
    sent = event_stream(chunk("Hi") + b"".join(others) + FINISH)
    _, response, _ = await asked(start, sent, stream=True)
    told = response.text.split("\n\n")
    assert "more choices" in json.loads(told[8].removeprefix("data: "))["error"]["message"]
    assert told[9] == "data: [DONE]"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("n", [1, 4])
async def test_an_answer_that_nobody_asked_for_is_nobodys(start: Start, late: bool, n: int) -> None:
    """It stays on a connection of the pool, where the next request, of another client, comes."""
    spoken = 0

    def answer(text: str) -> bytes:
        message = {"role": "assistant", "content": text}
        return json_answer(
            CHAT_BODY | {"choices": [CHAT_BODY["choices"][0] | {"message": message}]}
        )

    async def two(writer: asyncio.StreamWriter) -> None:
        nonlocal spoken
        writer.write(answer("Hello.") + (b"" if late else answer("Stale.")))
        if late:
            asyncio.get_running_loop().call_later(0.1, writer.write, answer("Stale."))
            asyncio.get_running_loop().call_later(0.2, count)

    def count() -> None:
        nonlocal spoken
        spoken += 1

    async with raw_upstream({CHAT: two, COMPLETIONS: REFUSED}, keep=True) as upstream:
        gateway = await start(upstream.url)
        for _ in range(3):
            before = spoken
            got = await asyncio.gather(*(gateway.chat(ASK) for _ in range(n)))
            said = [r.json()["choices"][0]["message"]["content"] for r in got]
            assert said == ["Hello."] * n
            if late:
                await eventually(lambda before=before: spoken >= before + n)


@pytest.mark.parametrize("route", [CHAT, "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("after", ["7", "Wed, 21 Oct 2026 07:28:00 GMT", None, "x" * 99])
async def test_when_to_ask_again_is_told(start: Start, route: str, after: str | None) -> None:
    head = [] if after is None else [f"retry-after: {after}"]
    error = {"error": {"message": "slow down", "type": "rate_limit", "code": 429}}
    async with raw_upstream({CHAT: http(PLAIN), COMPLETIONS: REFUSED}) as upstream:
        gateway = await start(upstream.url)
        await gateway.chat(ASK)
        upstream.answers[CHAT] = json_answer(error, *head, status="429 Too Many Requests")
        for stream in (False, True):
            asked = {**ASK, "stream": stream, "max_tokens": 9, "input": "Hi"}
            asked.pop("messages" if "responses" in route else "input")
            asked.pop("max_tokens")
            if "messages" in route:
                asked["max_tokens"] = 9
            response = await gateway.client.post(route, json=asked)
            assert response.status_code == 429, response.text
            told = response.headers.get("retry-after")
            assert told == (after if after is not None and len(after) < 64 else None)

"""What one client may send, and for how long: bodies of every route, and the headers before."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from starlette.routing import Route

from entrogate.serve.door import MESSAGES_ROUTE
from entrogate.serve.protocol import HEAD_LIMIT_BYTES
from tests.integration.conftest import Start
from tests.integration.harness import Running

BODY_LIMIT = 2048


async def exchange(
    gateway: Running, *chunks: bytes, pause_seconds: float = 0.0
) -> tuple[int | None, str | None]:
    """Status and error code of what comes back until the gateway hangs up or has answered; None
    where it hangs up without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(60):
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(pause_seconds)
            head = await reader.readline()
            if not head:
                return None, None
            head += await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.close()
    return int(head.split()[1]), json.loads(body).get("error", {}).get("code")


def with_bodies(gateway: Running) -> list[tuple[str, str]]:
    """Method and path of every route that takes a body."""
    return [
        (method, re.sub(r"{\w+(?::\w+)?}", "x", route.path))
        for route in gateway.app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
        if method in ("POST", "PUT", "PATCH")
    ]


def head(method: str, path: str, length: int) -> bytes:
    kind = "application/x-www-form-urlencoded" if path.startswith("/ui") else "application/json"
    said = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{said}Content-Length: {length}\r\n\r\n".encode()


def said(path: str, code: str) -> str | None:
    """Anthropic's errors have no code."""
    return None if path.startswith(MESSAGES_ROUTE) else code


async def test_every_body_has_a_limit(start: Start) -> None:
    gateway = await start(serve={"body_limit_bytes": BODY_LIMIT})
    routes = with_bodies(gateway)
    assert ("POST", "/v1/feedback") in routes
    for method, path in routes:
        body = b'{"comment": "' + b"a" * BODY_LIMIT + b'"}'
        declared = head(method, path, len(body)) + body
        chunked = head(method, path, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        for sent in (declared, chunked):
            assert await exchange(gateway, sent) == (413, said(path, "body_too_large")), path


async def test_every_body_has_to_come(start: Start) -> None:
    gateway = await start(serve={"body_timeout_seconds": 0.1})
    for method, path in with_bodies(gateway):
        sent = head(method, path, 10) + b"{"
        assert await exchange(gateway, sent) == (408, said(path, "body_timeout")), path


LINE = b"x-a: " + b"a" * 2000 + b"\r\n"


@pytest.mark.parametrize("chunk", [LINE, b"a" * len(LINE)], ids=["many", "one endless"])
async def test_headers_have_a_limit(gateway: Running, chunk: bytes) -> None:
    chunks = [b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-b: "]
    chunks += [chunk] * (HEAD_LIMIT_BYTES // len(chunk) + 1)
    answer = await exchange(gateway, *chunks, pause_seconds=0.001)
    assert answer == (431, "headers_too_large")
    refused = await gateway.metric("entrogate_requests_refused_total", reason="headers_too_large")
    assert refused == 1


async def test_trailers_have_a_limit(start: Start) -> None:
    """They come after the answer to somebody without a key, too."""
    gateway = await start(access={"key": "a-static-secret-1"})
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    chunked = head("POST", "/v1/feedback", 0).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    async with asyncio.timeout(60):
        writer.write(chunked)
        assert b" 401 " in await reader.readline()
        writer.write(b"0\r\n")
        with pytest.raises(ConnectionError):
            await send_slowly(writer, LINE, 10 * HEAD_LIMIT_BYTES // len(LINE))
    writer.close()


async def send_slowly(writer: asyncio.StreamWriter, chunk: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0.001)


async def test_long_headers_below_the_limit(gateway: Running) -> None:
    chunks = [b"GET /health HTTP/1.1\r\nHost: localhost\r\n", *[LINE] * 20, b"\r\n"]
    assert (await exchange(gateway, *chunks, pause_seconds=0.001))[0] == 200


async def test_a_body_does_not_count_as_headers(gateway: Running) -> None:
    """Not even where it ends in the read in which the next request begins."""
    body = b'{"comment": "' + b"a" * 4 * HEAD_LIMIT_BYTES + b'"}'
    sent = head("POST", "/v1/feedback", len(body)) + body + b"GET /hea"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    async with asyncio.timeout(60):
        writer.write(sent)
        await writer.drain()
        assert b" 400 " in await reader.readline()
        writer.write(b"lth HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = await reader.readuntil(b'"status":"ok"')
    writer.close()
    assert b" 200 OK" in answers


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ((), (None, None)),
        ((b"GET /hea",), (408, "headers_timeout")),
        ((b"GET /health HTTP/1.1\r\nHost: localhost\r\n",), (408, "headers_timeout")),
    ],
)
async def test_headers_have_to_come(
    start: Start, sent: tuple[bytes, ...], answer: tuple[int | None, str | None]
) -> None:
    gateway = await start(serve={"body_timeout_seconds": 0.1})
    assert await exchange(gateway, *sent) == answer


async def test_a_kept_connection_may_be_idle_for_longer(start: Start) -> None:
    """Between two requests uvicorn's own limit counts."""
    gateway = await start(serve={"body_timeout_seconds": 0.1})
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    async with asyncio.timeout(60):
        for _ in range(2):
            writer.write(request)
            await reader.readuntil(b'"status":"ok"')
            await asyncio.sleep(0.3)
    writer.close()


# -- offers of another protocol -------------------------------------------------------------------

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    "TLS": b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("step", [10**6, 7], ids=["whole", "in pieces"])
async def test_an_offer_of_another_protocol_is_not_taken(
    gateway: Running, offer: bytes, chunked: bool, step: int
) -> None:
    """The request is answered as if there had been none, and so is the next one."""
    body = b'{"score": 0.5, "response_id": "chatcmpl-none"}'
    length = b"Content-Length: %d\r\n" % len(body)
    plain = head("POST", "/v1/feedback", len(body))
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    sent = plain.replace(length, offer + (b"Transfer-Encoding: chunked\r\n" if chunked else length))
    sent += body + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    async with asyncio.timeout(60):
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)
        answers = await reader.readuntil(b'"status":"ok"')
    writer.close()
    assert answers.startswith(b"HTTP/1.1 404")  # the body was read: it names what is not stored
    assert b"chatcmpl-none" in answers
    assert answers.count(b"HTTP/1.1 ") == 2


async def test_no_proxy(gateway: Running) -> None:
    sent = b"CONNECT /health HTTP/1.1\r\nHost: localhost\r\n\r\nmore"
    status, _ = await exchange(gateway, sent)
    assert status == 405


async def test_many_offers_at_once(gateway: Running) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + OFFERS["h2c"] + b"\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    async with asyncio.timeout(60):
        writer.write(request * 1500)
        for _ in range(1500):
            assert b" 200 " in await reader.readline()
            await reader.readuntil(b'"status":"ok"')
            await reader.readuntil(b"}")
    writer.close()


async def test_what_is_left_of_an_answered_body_has_to_come_too(start: Start) -> None:
    """Byte by byte it would keep the connection of somebody without a key for ever."""
    gateway = await start(access={"key": "a-static-secret-1"}, serve={"body_timeout_seconds": 0.3})
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    async with asyncio.timeout(60):
        writer.write(head("POST", "/v1/feedback", 10**6))
        assert b" 401 " in await reader.readline()
        with pytest.raises(ConnectionError):
            await send_slowly(writer, b"a", 10**6)
    writer.close()


async def test_what_is_no_http_is_refused_in_the_envelope(gateway: Running) -> None:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"

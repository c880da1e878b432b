"""A model server that says bytes: what no HTTP library would send can be sent with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Say = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer with this body; ``length`` is what it claims, where that is not true."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}"]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append("content-type: application/json")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def json_answer(payload: Any, *headers: str, status: str = "200 OK") -> bytes:
    return http(json.dumps(payload).encode(), *headers, status=status)


CHAT_BODY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "raw",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
MODELS = {"object": "list", "data": [{"id": "raw", "object": "model"}]}
NOT_FOUND = json_answer({"detail": "Not Found"}, status="404 Not Found")


@dataclass(slots=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass(slots=True)
class RawUpstream:
    """``answers``: what is said to a path, bytes or a function that writes; else 404.

    A connection is closed after what is said, unless it was said with ``keep``.
    """

    answers: dict[str, Say | Callable[[Asked], bytes]]
    url: str = ""
    keep: bool = False
    asked: list[Asked] = field(default_factory=list[Asked])

    def paths(self) -> list[str]:
        return [each.path for each in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(method, path, headers, body)
                self.asked.append(asked)
                said = self.answers.get(path, NOT_FOUND)
                if isinstance(said, bytes):
                    writer.write(said)
                elif asyncio.iscoroutinefunction(said):
                    await said(writer)
                else:
                    writer.write(said(asked))  # pyright: ignore[reportCallIssue, reportArgumentType]
                await writer.drain()
                if not self.keep:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def raw_upstream(
    answers: Mapping[str, Any], *, keep: bool = False
) -> AsyncIterator[RawUpstream]:
    """Serves ``answers`` beside a list of models, on a port of its own."""
    upstream = RawUpstream(
        {"/v1/models": json_answer(MODELS), "/health": http(b""), **answers}, keep=keep
    )
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()

"""A load generator that costs little: raw HTTP/1.1 over kept-alive connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from entrogate.errors import UpstreamError

_EVENT = b"data: {"
_LAST_CHUNK = b"0\r\n\r\n"
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer: seconds to its first token and to its end, and its events (0 for JSON)."""

    first_seconds: float
    total_seconds: float
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Every answer of one run and how long the run took."""

    samples: tuple[Sample, ...]
    wall_seconds: float


async def run_load(url: str, bodies: Sequence[bytes], *, concurrency: int, stream: bool) -> Run:
    """Post ``bodies`` to ``url``'s chat route, ``concurrency`` at a time.

    Raises UpstreamError when an answer is not a 200.
    """
    queue = iter(bodies)
    samples: list[Sample] = []
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(bodies))):
            group.create_task(_worker(url, queue, samples, stream=stream))
    return Run(samples=tuple(samples), wall_seconds=time.perf_counter() - begin)


async def _worker(url: str, queue: Iterator[bytes], samples: list[Sample], *, stream: bool) -> None:
    target = urlsplit(url)
    host, port = target.hostname or "127.0.0.1", target.port or 80
    reader, writer = await asyncio.open_connection(host, port, limit=2**22)
    head = (
        f"POST {target.path}/v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    try:
        for body in queue:
            begin = time.perf_counter()
            writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                samples.append(await _read_answer(reader, begin, stream=stream))
    finally:
        writer.close()


async def _read_answer(reader: asyncio.StreamReader, begin: float, *, stream: bool) -> Sample:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:16]:
        status = head.split(b"\r\n", 1)[0].decode()
        rest = await reader.read(500)
        raise UpstreamError(f"the server under load answered {status}: {rest.decode()}")
    if not stream:
        await _read_body(reader, head)
        total = time.perf_counter() - begin
        return Sample(first_seconds=total, total_seconds=total, events=0)
    events, first = 0, 0.0
    tail = b""
    while True:
        data = await reader.read(2**18)
        if not data:
            raise UpstreamError("the server under load broke off its answer")
        # The role event comes before any token: the first token is in the second event.
        events += data.count(_EVENT)
        if not first and events > 1:
            first = time.perf_counter() - begin
        tail = (tail + data)[-len(_LAST_CHUNK) :]
        if tail == _LAST_CHUNK:
            total = time.perf_counter() - begin
            return Sample(first_seconds=first, total_seconds=total, events=events + 1)


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    at = head.find(b"content-length:")
    if at >= 0:
        await reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
        return
    await reader.readuntil(_LAST_CHUNK)

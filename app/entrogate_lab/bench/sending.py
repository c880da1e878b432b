"""How the scripted upstream sends an answer, and what goes wrong on the way if a step says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from entrogate_lab.bench import dialect
from entrogate_lab.bench.engine_side import Captured
from entrogate_lab.bench.script import Step

HEADERS = {"Server": "uvicorn", "Vary": "Origin"}
_SSE = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"}
_GARBAGE = b"<html>not what you asked for</html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A rendered answer: events of a stream, or one body; and what the engine side sends of it."""

    parts: list[bytes]
    step: Step
    stream: bool
    captured: tuple[Captured, ...] = ()


async def send(request: web.Request, answer: Answer, go_on: asyncio.Event) -> web.StreamResponse:
    """Send ``answer``, with the fault of its step; `stall` ends when ``go_on`` is set."""
    step = answer.step
    parts = dialect.fresh_ids(answer.parts, request.headers.get("X-Request-Id"))
    if not answer.stream:
        return await _send_body(request, parts[0], step, go_on)
    response = web.StreamResponse(headers=_SSE)
    await response.prepare(request)
    until = len(parts) if step.fault is None else min(step.at, len(parts))
    for part in parts[:until]:
        await response.write(part)
        # Lets the other streams send theirs: an engine samples one token for each of them.
        await asyncio.sleep(step.delay)
    if step.fault == "stall":
        await go_on.wait()
    if step.fault is not None:
        await _break_stream(request, response, step, parts[until:])
    if step.fault != "cut":
        await response.write_eof()
    return response


async def _break_stream(
    request: web.Request, response: web.StreamResponse, step: Step, rest: Sequence[bytes]
) -> None:
    match step.fault:
        case "cut":
            _cut(request)
        case "sse_error":
            await response.write(dialect.error_event("scripted error", "InternalServerError", 500))
            await response.write(dialect.DONE)
        case "garbage":
            await response.write(b"data: " + _GARBAGE + b"\n\n")
        case "end":
            pass
        case _:
            for part in rest:
                await response.write(part)


async def _send_body(
    request: web.Request, body: bytes, step: Step, go_on: asyncio.Event
) -> web.StreamResponse:
    if step.delay:
        await asyncio.sleep(step.delay)
    match step.fault:
        case "cut":
            response = web.StreamResponse(headers=HEADERS | {"Content-Type": "application/json"})
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            _cut(request)
            return response
        case "stall":
            await go_on.wait()
        case "garbage" | "end":
            return web.Response(body=_GARBAGE, headers=HEADERS, content_type="text/html")
        case "sse_error":
            error = dialect.error_body("scripted error", "InternalServerError", 500)
            return json_response(error, 500)
        case _:
            pass
    return json_response(body)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def json_response(body: bytes, status: int = 200) -> web.Response:
    """As vLLM's server sends it."""
    return web.Response(body=body, status=status, headers=HEADERS, content_type="application/json")

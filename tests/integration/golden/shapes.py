"""Answers of an upstream as raw events: forms of well-formed SSE and of tool calls in the wild.

The scripted upstream speaks vLLM's dialect only; these are what other parsers, other versions and
proxies in between make of it. ``shape:NAME`` in the last user message asks for one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from entrogate_lab.bench.upstream import ScriptedUpstream

_ID = "chatcmpl-x1"
_NAMED = re.compile(rb"shape:(\w+)")
_HEAD = {"id": _ID, "object": "chat.completion.chunk", "created": 1795374377, "model": "scripted"}
A, B = '{"entity":"A"}', '{"entity":"B"}'


def _chunk(
    delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**_HEAD, "choices": [{**choice, "token_ids": None}], **more}


def _usage(prompt: int = 10, sampled: int = 5) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": sampled}
    return {**_HEAD, "choices": [], "usage": {**counts, "total_tokens": prompt + sampled}}


def _sse(
    *events: dict[str, Any] | bytes, end: bytes = b"\n", prefix: bytes = b"data: "
) -> list[bytes]:
    sent: list[bytes] = []
    for event in events:
        if isinstance(event, bytes):
            sent.append(event)
            continue
        text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
        sent.append(prefix + text.encode() + end + end)
    return [*sent, prefix + b"[DONE]" + end + end]


def _call(
    index: int, name: str | None = None, arguments: str | None = None, call_id: str | None = None
) -> dict[str, Any]:
    delta: dict[str, Any] = {"index": index}
    if call_id is not None:
        delta |= {"id": call_id, "type": "function"}
    function = {"name": name, "arguments": arguments}
    return delta | {"function": {k: v for k, v in function.items() if v is not None}}


_ROLE = _chunk({"role": "assistant", "content": ""})
_HI = (_ROLE, _chunk({"content": "Hi"}), _chunk({}, "stop"), _usage())


def _calls(*deltas: dict[str, Any], finish: str = "tool_calls") -> list[bytes]:
    parts = [_chunk({"tool_calls": [delta]}) for delta in deltas]
    return _sse(_ROLE, *parts, _chunk({}, finish), _usage())


def _says(*deltas: dict[str, Any], finish: str = "stop") -> list[bytes]:
    return _sse(_ROLE, *[_chunk(delta) for delta in deltas], _chunk({}, finish), _usage())


def _two(zero: dict[str, Any], one: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choices = [_chunk(d, finish, i)["choices"][0] for i, d in enumerate((zero, one))]
    return {**_HEAD, "choices": choices}


SHAPES: dict[str, list[bytes]] = {
    "whole_call": _calls(_call(0, "lookup", A, "up-1")),
    "interleaved": _calls(
        _call(0, "lookup", "", "up-a"),
        _call(1, "search", "", "up-b"),
        _call(0, arguments=A[:8]),
        _call(1, arguments=B[:8]),
        _call(0, arguments=A[8:]),
        _call(1, arguments=B[8:]),
    ),
    "tail_of_first": _calls(
        _call(0, "lookup", "", "up-a"),
        _call(0, arguments=A[:-1]),
        _call(1, "search", "", "up-b"),
        _call(0, arguments="}"),
        _call(1, arguments=B),
    ),
    "late_name": _calls(
        _call(0, arguments="", call_id="up-1"), _call(0, "lookup", ""), _call(0, arguments=A)
    ),
    "id_each": _calls(
        _call(0, "lookup", "", "up-1"),
        _call(0, arguments=A[:8], call_id="up-1"),
        _call(0, arguments=A[8:], call_id="up-1"),
    ),
    "name_each": _calls(
        _call(0, "lookup", "", "up-1"), _call(0, "lookup", A[:8]), _call(0, "lookup", A[8:])
    ),
    "empty_id_rest": _calls(
        _call(0, "lookup", "", "up-1"),
        _call(0, arguments=A[:8], call_id=""),
        _call(0, arguments=A[8:], call_id=""),
    ),
    "gap_index": _calls(_call(1, "lookup", A, "up-a"), _call(3, "search", B, "up-b")),
    "finish_with_call": _sse(
        _ROLE, _chunk({"tool_calls": [_call(0, "lookup", A, "up-1")]}, "tool_calls"), _usage()
    ),
    "stop_with_call": _calls(_call(0, "lookup", A, "up-1"), finish="stop"),
    "text_between": _sse(
        _ROLE,
        _chunk({"tool_calls": [_call(0, "lookup", A[:8], "up-1")]}),
        _chunk({"content": "hm"}),
        _chunk({"tool_calls": [_call(0, arguments=A[8:])]}),
        _chunk({}, "tool_calls"),
        _usage(),
    ),
    "crlf": _sse(*_HI, end=b"\r\n"),
    "nospace": _sse(*_HI, prefix=b"data:"),
    "comment": _sse(b": keep-alive\n\n", _HI[0], b": ping\n\n", *_HI[1:]),
    "comment_joined": _sse(b": keep-alive\n", _HI[0], b": ping\n", *_HI[1:]),
    "named": _sse(b"event: message\nid: 1\n", _HI[0], b"id: 2\nevent: message\n", *_HI[1:]),
    "reasoning_content": _says({"reasoning_content": "think"}, {"content": "Hi"}),
    "usage_each": _sse(
        {**_ROLE, "usage": _usage(10, 0)["usage"]},
        _chunk({"content": "Hi"}, usage=_usage(10, 1)["usage"]),
        _chunk({}, "stop", usage=_usage(10, 2)["usage"]),
        _usage(10, 2),
    ),
    "two_choices_one_chunk": _sse(
        _two({"role": "assistant", "content": ""}, {"role": "assistant", "content": ""}),
        _two({"content": "zero"}, {"content": "one"}),
        _two({}, {}, "stop"),
        _usage(),
    ),
    "content_filter": _says({"content": "Hi"}, finish="content_filter"),
    "abort": _says({"content": "Hi"}, finish="abort"),
    "refusal": _says({"refusal": "I cannot"}),
    "long_finish": _sse(
        _ROLE, _chunk({"content": "Hi"}), _chunk({"content": " end"}, "length"), _usage()
    ),
    "bigint": _calls(_call(0, "lookup", '{"id":12345678901234567890123}', "up-1")),
    "control": _calls(_call(0, "lookup", '{"code":"line one\nline two\ttab"}', "up-1")),
    "more_than_json": _calls(_call(0, "lookup", '{"a":1}}', "up-1")),
    "double_encoded": _calls(_call(0, "lookup", json.dumps(A), "up-1")),
    "no_arguments": _calls(_call(0, "lookup", "", "up-1")),
    "cut_call": _calls(_call(0, "lookup", '{"entity":"A long na', "up-1"), finish="length"),
}


class ShapedUpstream(ScriptedUpstream):
    """The scripted upstream, which also knows SHAPES and remembers every request in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.seen.append((request.path, dict(request.headers), raw))
        named = _NAMED.search(raw)
        if named is None:
            return await super()._generate(request)
        own = ("chatcmpl-" + request.headers.get("X-Request-Id", "x1")).encode()
        events = [e.replace(_ID.encode(), own) for e in SHAPES[named[1].decode()]]
        if not json.loads(raw).get("stream"):
            return web.Response(body=_whole(events), content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        await response.write_eof()
        return response


def _whole(events: list[bytes]) -> bytes:
    """The body of the same answer, not streamed."""
    choices: dict[int, dict[str, Any]] = {}
    head: dict[str, Any] = {}
    for line in b"".join(events).replace(b"\r\n", b"\n").split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            event = json.loads(data)
            head |= {k: event[k] for k in ("id", "usage") if k in event}
            for choice in event["choices"]:
                _fold(choice, choices.setdefault(choice["index"], {"message": {}, "calls": {}}))
    body = {**_HEAD, **head, "object": "chat.completion"}
    body["choices"] = [_choice(index, found) for index, found in sorted(choices.items())]
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def _fold(choice: dict[str, Any], found: dict[str, Any]) -> None:
    found["finish"] = choice["finish_reason"]
    for name, value in choice["delta"].items():
        if name == "role":
            continue
        if name != "tool_calls":
            found["message"][name] = found["message"].get(name, "") + value
            continue
        for part in value:
            call = found["calls"].setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] = call["id"] or part.get("id", "")
            call["name"] = call["name"] or part["function"].get("name", "")
            call["arguments"] += part["function"].get("arguments", "")


def _choice(index: int, found: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, **found["message"]}
    message["content"] = message["content"] or None
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for _, call in sorted(found["calls"].items())
    ]
    if calls:
        message["tool_calls"] = calls
    choice = {"index": index, "message": message, "logprobs": None}
    return choice | {"finish_reason": found["finish"], "token_ids": None}

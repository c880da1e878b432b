"""Answers as other servers write them: all doors tell what was said, and it is what is stored."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NamedTuple

import pytest

from tests.integration.conftest import Start
from tests.integration.doors import (
    ANTHROPIC_TOOLS,
    MESSAGES,
    RESPONSES,
    RESPONSES_TOOLS,
    events_of,
    folded_message,
    folded_response,
)
from tests.integration.harness import CHAT, TOOLS, Running
from tests.integration.raw_upstream import http, json_answer, raw_upstream

Json = dict[str, Any]
DOORS = ("chat", "messages", "responses")
A, B = '{"entity":"A"}', '{"entity":"B"}'


class Said(NamedTuple):
    """What an answer says, at any door."""

    text: str = ""
    thought: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def chunk(delta: Any, finish: Any = None, **more: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "raw"}
    return {**head, "choices": [choice]}


def body(message: Json, finish: Any = "stop", **more: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "raw"}
    return {**head, "choices": [choice | more]}


def call(arguments: Any, name: str = "lookup", **more: Any) -> Json:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls(*deltas: Json) -> list[Any]:
    return [*(chunk({"tool_calls": [d]}) for d in deltas), END]


END = chunk({}, "tool_calls")
HI = chunk({"content": "Hi"})
STOP = chunk({}, "stop")
THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
ONE, TWO = (("lookup", A),), (("lookup", A), ("search", B))
DONE = b"data: [DONE]\n\n"

# What is sent in a stream, and what was said.
STREAMS: dict[str, tuple[list[Any], Said]] = {
    "calls without indexes": (
        [chunk({"tool_calls": [call(A, id="a"), call(B, "search", id="b")]}), END],
        Said(calls=TWO),
    ),
    "calls without indexes, one by one": (
        calls(call(A, id="a"), call(B, "search", id="b")),
        Said(calls=TWO),
    ),
    "calls without indexes and ids": (calls(call(A), call(B, "search")), Said(calls=TWO)),
    "pieces without indexes": (
        calls(
            call("", id="a"),
            {"function": {"arguments": A[:5]}},
            {"function": {"arguments": A[5:]}},
            call("", "search", id="b"),
            {"function": {"arguments": B}},
        ),
        Said(calls=TWO),
    ),
    "an index that is null": (calls(call(A, id="a", index=None)), Said(calls=ONE)),
    "an index that is a text": (calls(call(A, id="a", index="0")), Said(calls=ONE)),
    "every call at index 0": (
        calls(call(A, id="a", index=0), call(B, "search", id="b", index=0)),
        Said(calls=TWO),
    ),
    "every call at index 0, in pieces": (
        calls(
            call(A, id="a", index=0),
            call("", "search", id="b", index=0),
            {"index": 0, "function": {"arguments": B}},
        ),
        Said(calls=TWO),
    ),
    "arguments as an object": (calls(call({"entity": "A"}, id="a", index=0)), Said(calls=ONE)),
    "a call that is no list": (
        [chunk({"tool_calls": call(A, id="a", index=0)}), END],
        Said(calls=ONE),
    ),
    "a call without its function": (
        calls({"index": 0, "id": "a", "name": "lookup", "arguments": A}),
        Said(calls=ONE),
    ),
    "an id that is a number": (calls(call(A, id=7, index=0)), Said(calls=ONE)),
    "content as parts": (
        [chunk({"content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]}), STOP],
        Said("Hi!"),
    ),
    "thinking as parts": (
        [
            chunk({"content": [THINKING]}),
            HI,
            STOP,
        ],
        Said("Hi", "hm"),
    ),
    "empty finish reasons": (
        [chunk({"role": "assistant", "content": "Hi"}, ""), chunk({"content": "!"}, ""), STOP],
        Said("Hi!"),
    ),
    "two finish reasons": (
        [HI, chunk({"content": "!"}, "stop"), chunk({"content": "?"}, "stop")],
        Said("Hi!?"),
    ),
    "text after the finish reason": (
        [chunk({"content": "Hi"}, "stop"), chunk({"content": "!"})],
        Said("Hi!"),
    ),
    "no delta": ([HI, chunk(None), {**STOP, "choices": [{"finish_reason": "stop"}]}], Said("Hi")),
    "no index of a choice": (
        [{**HI, "choices": [{"delta": {"content": "Hi"}}]}, STOP],
        Said("Hi"),
    ),
    "nulls in the head": ([{**HI, "id": None, "model": None, "created": None}, STOP], Said("Hi")),
    "a time with a fraction": ([{**HI, "created": 1.5}, STOP], Said("Hi")),
    "no choices": ([{**HI, "choices": None}, HI, STOP], Said("Hi")),
    "a token id below 0": ([chunk({"content": "Hi"}, token_ids=[-1]), STOP], Said("Hi")),
    "a token id above 31 bits": ([chunk({"content": "Hi"}, token_ids=[2**31]), STOP], Said("Hi")),
    "a log-prob that is null": (
        [chunk({"content": "Hi"}, logprobs={"content": [{"token": "Hi", "logprob": None}]}), STOP],
        Said("Hi"),
    ),
    "a log-prob that is no number": (
        [
            chunk({"content": "Hi"}, logprobs={"content": [{"token": "", "logprob": math.nan}]}),
            STOP,
        ],
        Said("Hi"),
    ),
    "usage of another kind": ([{**HI, "usage": {"prompt_tokens": "x"}}, STOP], Said("Hi")),
    "details of another kind": (
        [{**HI, "usage": {"prompt_tokens": 1, "prompt_tokens_details": [1]}}, STOP],
        Said("Hi"),
    ),
    "a stop reason of another kind": ([HI, chunk({}, "stop", stop_reason=[1])], Said("Hi")),
    "no [DONE]": ([HI, STOP, b""], Said("Hi")),
    "no blank line after [DONE]": ([HI, STOP, DONE[:-1]], Said("Hi")),
}  # fmt: skip

WHOLE: dict[str, tuple[Any, Said]] = {
    "arguments as an object": (
        body({"content": None, "tool_calls": [call({"entity": "A"}, id="a")]}, "tool_calls"),
        Said(calls=ONE),
    ),
    "a large number in an object": (
        body({"tool_calls": [call({"n": 12345678901234567890123}, id="a")]}, "tool_calls"),
        Said(calls=(("lookup", '{"n":12345678901234567890123}'),)),
    ),
    "content as parts": (
        body(
            {
                "content": [
                    THINKING,
                    {"type": "text", "text": "Hi"},
                ]
            }
        ),
        Said("Hi", "hm"),
    ),
    "an index that is null": (
        body({"tool_calls": [call(A, id="a", index=None)]}, "tool_calls"),
        Said(calls=ONE),
    ),
    "a choice without an index": (
        {
            **body({}),
            "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
        },
        Said("Hi"),
    ),
    "nulls in the head": ({**body({"content": "Hi"}), "id": None, "created": None}, Said("Hi")),
    "an empty finish reason": (body({"content": "Hi"}, ""), Said("Hi")),
    "a token id below 0": (body({"content": "Hi"}, token_ids=[-5]), Said("Hi")),
    "a log-prob that is no number": (
        body({"content": "Hi"}, logprobs={"content": [{"token": "x", "logprob": float("-inf")}]}),
        Said("Hi"),
    ),
    "usage of another kind": ({**body({"content": "Hi"}), "usage": [1]}, Said("Hi")),
    "details of another kind": (
        {**body({"content": "Hi"}), "usage": {"completion_tokens_details": 3}},
        Said("Hi"),
    ),
}  # fmt: skip


def event_stream(sent: list[Any]) -> bytes:
    parts = [p if isinstance(p, bytes) else b"data: %s\n\n" % json.dumps(p).encode() for p in sent]
    if not isinstance(sent[-1], bytes):
        parts.append(DONE)
    return http(b"".join(parts), "content-type: text/event-stream")


def request(door: str, *, stream: bool) -> tuple[str, Json]:
    said = [{"role": "user", "content": "Who?"}]
    head: Json = {"model": "raw", "stream": stream}
    if door == "chat":
        return CHAT, {**head, "messages": said, "tools": TOOLS}
    if door == "messages":
        return MESSAGES, {**head, "messages": said, "max_tokens": 9, "tools": ANTHROPIC_TOOLS}
    return RESPONSES, {**head, "input": "Who?", "tools": RESPONSES_TOOLS}


def of_chat(answer: Any) -> Said:
    """Of a body, or of the events of a stream; every call has one id and one name."""
    if isinstance(answer, dict):
        message = answer["choices"][0]["message"]
        made = [c["function"] for c in message.get("tool_calls") or ()]
        told = tuple((f["name"], f["arguments"]) for f in made)
        return Said(message.get("content") or "", message.get("reasoning") or "", told)
    text, thought, found = "", "", dict[int, list[str]]()
    for event in answer:
        assert "error" not in event, event
        for choice in event["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            thought += delta.get("reasoning") or ""
            for piece in delta.get("tool_calls") or ():
                function = piece.get("function") or {}
                assert ("id" in piece) == (piece["index"] not in found)
                one = found.setdefault(piece["index"], ["", ""])
                one[0] += function.get("name") or ""
                one[1] += function.get("arguments") or ""
    return Said(text, thought, tuple((n, a) for n, a in found.values()))


def of_message(message: Json) -> Said:
    kinds = [(b["type"], b) for b in message["content"]]
    made = [
        (b["name"], json.dumps(b["input"], separators=(",", ":")))
        for k, b in kinds
        if k == "tool_use"
    ]
    text = "".join(b["text"] for k, b in kinds if k == "text")
    return Said(text, "".join(b["thinking"] for k, b in kinds if k == "thinking"), tuple(made))


def of_response(response: Json) -> Said:
    output = response["output"]
    texts = [p["text"] for o in output if o["type"] == "message" for p in o["content"]]
    thoughts = [p["text"] for o in output if o["type"] == "reasoning" for p in o["content"]]
    made = [(o["name"], o["arguments"]) for o in output if o["type"] == "function_call"]
    return Said("".join(texts), "".join(thoughts), tuple(made))


async def told(gateway: Running, door: str, *, stream: bool) -> tuple[Said, Said, Json]:
    """What the client was told, what was stored, and the stored turn."""
    path, asked = request(door, stream=stream)
    async with asyncio.timeout(30):
        response = await gateway.client.post(path, json=asked)
    assert response.status_code == 200, response.text
    if not stream:
        read = {"chat": of_chat, "messages": of_message, "responses": of_response}[door]
        said = read(response.json())
    elif door == "chat":
        assert response.text.endswith("data: [DONE]\n\n")
        parts = response.text.split("\n\n")[:-2]
        said = of_chat([json.loads(p.removeprefix("data: ")) for p in parts if p])
    elif door == "messages":
        said = of_message(folded_message(events_of(response.content)))
    else:
        said = of_response(folded_response(events_of(response.content)))
    (turn,) = (await gateway.trajectory(response))["turns"]
    stored = of_chat({"choices": [{"message": turn["response"]}]})
    return said, stored, turn


@pytest.mark.parametrize("kind", STREAMS)
async def test_streams(start: Start, kind: str) -> None:
    sent, wanted = STREAMS[kind]
    async with raw_upstream({CHAT: event_stream(sent)}) as upstream:
        gateway = await start(upstream.url)
        for door in DOORS:
            said, stored, turn = await told(gateway, door, stream=True)
            assert (door, said) == (door, wanted)
            assert stored == wanted
            assert turn["error"] is None
            assert turn["capture_gap"] is not None
            assert turn["segment"] is None


@pytest.mark.parametrize("kind", WHOLE)
async def test_bodies(start: Start, kind: str) -> None:
    sent, wanted = WHOLE[kind]
    async with raw_upstream({CHAT: json_answer(sent)}) as upstream:
        gateway = await start(upstream.url)
        for door in DOORS:
            said, stored, turn = await told(gateway, door, stream=False)
            assert (door, said) == (door, wanted)
            assert stored == wanted
            assert turn["capture_gap"] is not None
            assert turn["segment"] is None


FAILED = {
    "an object's error": {"error": {"message": "out of memory", "code": "server_error"}},
    "a text": {"error": "out of memory"},
    "vLLM's older form": {"object": "error", "message": "out of memory", "code": 500},
    "FastAPI's form": {"detail": "out of memory"},
    "beside a choice": {**chunk({"content": "!"}, "error"), "error": {"message": "out of memory"}},
}


@pytest.mark.parametrize("ends", [True, False], ids=["with [DONE]", "without"])
@pytest.mark.parametrize("kind", FAILED)
async def test_a_failure_in_a_stream_is_told_once(start: Start, kind: str, ends: bool) -> None:
    sent = [HI, FAILED[kind], DONE if ends else b""]
    async with raw_upstream({CHAT: event_stream(sent)}) as upstream:
        gateway = await start(upstream.url)
        for door in DOORS:
            path, asked = request(door, stream=True)
            response = await gateway.client.post(path, json=asked)
            assert response.text.count("out of memory") == 1, response.text
            assert "broke off" not in response.text
            (turn,) = (await gateway.trajectory(response))["turns"]
            assert turn["error"] == "the upstream reported an error in its stream"
            assert turn["response"]["content"] == ("Hi!" if kind == "beside a choice" else "Hi")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (json_answer({"error": {"message": "out of memory"}}), "out of memory"),
        (json_answer({"object": "error", "message": "out of memory"}), "out of memory"),
        (http(b"<html>Sign in</html>", "content-type: text/html; charset=utf-8"), "Sign in"),
    ],
)
async def test_a_failure_in_place_of_an_answer(
    start: Start, door: str, sent: bytes, said: str
) -> None:
    async with raw_upstream({CHAT: sent}) as upstream:
        gateway = await start(upstream.url)
        for stream in (True, False):
            path, asked = request(door, stream=stream)
            response = await gateway.client.post(path, json=asked)
            assert response.status_code == 502, response.text
            assert stream is False or said in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["application/json", "text/html", "text/plain", ""])
async def test_a_stream_under_another_type(start: Start, kind: str) -> None:
    sent = event_stream([HI, STOP]).replace(b"text/event-stream", kind.encode())
    async with raw_upstream({CHAT: sent}) as upstream:
        gateway = await start(upstream.url)
        for door in DOORS:
            said, stored, _ = await told(gateway, door, stream=True)
            assert said == stored == Said("Hi")

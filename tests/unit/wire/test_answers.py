"""Chat answers, however they are cut into chunks, through the other APIs' doors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.answer import DoorAnswer
from entrogate.wire.messages.answer import MessagesAnswer
from entrogate.wire.responses.answer import ResponsesAnswer
from tests.integration.doors import events_of, folded_message, folded_response, same_answer

DOORS: dict[str, tuple[Callable[[], DoorAnswer], Callable[..., dict[str, Any]]]] = {
    "messages": (MessagesAnswer, folded_message),
    "responses": (lambda: ResponsesAnswer({}), folded_response),
}
TEXT = st.text(min_size=1, max_size=30)
OBJECTS = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=3)
BROKEN = ["", "{", '"', "[1]", "null", '{"a": tru}', '{"a": 1']
ARGUMENTS = OBJECTS.map(json.dumps) | st.sampled_from(BROKEN)
CALLS = st.lists(st.tuples(TEXT, ARGUMENTS), max_size=3)
FINISHES = st.sampled_from(["stop", "length", "tool_calls"])


def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """``text`` cut anywhere."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text[a:b]]


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A chat answer as the chunks of a stream, and as the body."""
    reasoning, content = draw(st.none() | TEXT), draw(st.none() | TEXT)
    calls, finish = draw(CALLS), draw(FINISHES)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning": piece} for piece in pieces(draw, reasoning or "")]
    deltas += [{"content": piece} for piece in pieces(draw, content or "")]
    for index, (name, arguments) in enumerate(calls):
        first = {"id": f"call_eg{index}", "type": "function", "function": {"name": name}}
        deltas.append({"tool_calls": [{"index": index, **first}]})
        for piece in pieces(draw, arguments):
            part = {"index": index, "function": {"arguments": piece}}
            deltas.append({"tool_calls": [part]})
    head = {"id": "chatcmpl-1", "created": 7, "model": "m"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({**head, "choices": [], "usage": usage})
    message: dict[str, Any] = {"role": "assistant", "content": content, "reasoning": reasoning}
    message["tool_calls"] = [
        {
            "id": f"call_eg{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(calls)
    ]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return chunks, {**head, "choices": [choice], "usage": usage}


def streamed(door: DoorAnswer, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = b"".join(door.feed(b"data: " + orjson.dumps(chunk) + b"\n\n") for chunk in chunks)
    return events_of(out + door.feed(b"data: [DONE]\n\n"))


@pytest.mark.parametrize("name", DOORS)
@given(answer=answers())
def test_a_stream_adds_up_to_the_body(
    name: str, answer: tuple[list[dict[str, Any]], dict[str, Any]]
) -> None:
    make, fold = DOORS[name]
    chunks, body = answer
    whole = json.loads(make().fold(orjson.dumps(body)))
    assert same_answer(fold(streamed(make(), chunks))) == same_answer(whole)


@given(answer=answers())
def test_the_input_of_a_call_is_always_an_object(
    answer: tuple[list[dict[str, Any]], dict[str, Any]],
) -> None:
    """The SDKs read it while it comes, and fail on what is none."""
    for event in streamed(MessagesAnswer(), answer[0]):
        if event.get("delta", {}).get("type") == "input_json_delta":
            assert isinstance(json.loads(event["delta"]["partial_json"]), dict)


def test_whitespace_before_a_call_is_no_text() -> None:
    def said(*deltas: dict[str, Any]) -> list[str]:
        chunks = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        return [b["type"] for b in folded_message(streamed(MessagesAnswer(), chunks))["content"]]

    call = {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}}]}
    assert said({"reasoning": "hm"}, {"content": "\n\n"}, call) == ["thinking", "tool_use"]
    assert said({"content": "\n\n"}, {"content": "Yes."}, call) == ["text", "tool_use"]
    assert said({"content": " \n"}) == []

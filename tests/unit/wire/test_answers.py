"""Chat answers, however they are cut into chunks, through the other APIs' doors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrogate.errors import UpstreamProtocol
from entrogate.wire.answer import DoorAnswer
from entrogate.wire.messages.answer import MessagesAnswer
from entrogate.wire.responses.answer import ResponsesAnswer
from tests.integration.doors import events_of, folded_message, folded_response, same_answer
from tests.unit.wire.pieces import cut, said_calls

DOORS: dict[str, tuple[Callable[[], DoorAnswer], Callable[..., dict[str, Any]]]] = {
    "messages": (MessagesAnswer, folded_message),
    "responses": (lambda: ResponsesAnswer({}), folded_response),
}
TEXT = st.text(min_size=1, max_size=30)
OBJECTS = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=3)
BROKEN = ["", "{", '"', "[1]", "null", '{"a": tru}', '{"a": 1']
ARGUMENTS = OBJECTS.map(json.dumps) | st.sampled_from(BROKEN)
FINISHES = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A chat answer as the chunks of a stream, and as the body."""
    reasoning, content = draw(st.none() | TEXT), draw(st.none() | TEXT)
    finish = draw(FINISHES)
    calls, call_deltas = draw(said_calls(arguments_of=ARGUMENTS))
    field = draw(st.sampled_from(["reasoning", "reasoning_content"]))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{field: piece} for piece in cut(draw, reasoning or "")]
    deltas += [{"content": piece} for piece in cut(draw, content or "")]
    deltas += [{"tool_calls": msgspec.to_builtins(delta)} for delta in call_deltas]
    head = {"id": "chatcmpl-1", "created": 7, "model": "m"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({**head, "choices": [], "usage": usage})
    message: dict[str, Any] = {"role": "assistant", "content": content, field: reasoning}
    message["tool_calls"] = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for _, call_id, name, arguments in calls
    ]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return chunks, {**head, "choices": [choice], "usage": usage}


def streamed(door: DoorAnswer, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = b"".join(door.feed(b"data: " + orjson.dumps(chunk) + b"\n\n") for chunk in chunks)
    return events_of(out + door.feed(b"data: [DONE]\n\n"))


@pytest.mark.parametrize("name", DOORS)
@given(answer=answers())
@settings(max_examples=200)
def test_a_stream_adds_up_to_the_body(
    name: str, answer: tuple[list[dict[str, Any]], dict[str, Any]]
) -> None:
    make, fold = DOORS[name]
    chunks, body = answer
    whole = json.loads(make().fold(orjson.dumps(body)))
    folded = fold(streamed(make(), chunks))
    assert same_answer(folded) == same_answer(whole)


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


HEAD = {"id": "chatcmpl-1", "created": 7, "model": "m"}
A, B = '{"entity":"A"}', '{"entity":"B"}'


def piece(index: int, name: str | None = None, args: str | None = None, call: Any = None) -> Any:
    said = {"index": index, "id": call, "function": {"name": name, "arguments": args}}
    return {"tool_calls": [said]}


INTERLEAVED = [
    piece(0, "lookup", "", "a"), piece(1, "search", "", "b"), piece(0, args=A[:8]),
    piece(1, args=B[:8]), piece(0, args=A[8:]), piece(1, args=B[8:]),
]  # fmt: skip
SHAPES: dict[str, list[dict[str, Any]]] = {
    "interleaved": INTERLEAVED,
    "tail of the first": [
        piece(0, "lookup", "", "a"), piece(0, args=A[:-1]), piece(1, "search", "", "b"),
        piece(0, args="}"), piece(1, args=B),
    ],
    "gaps": [piece(1, "lookup", A, "a"), piece(3, "search", B, "b")],
    "backwards": [piece(1, "search", B, "b"), piece(0, "lookup", A, "a")],
    "late names": [
        piece(0, args=A[:5], call="a"), piece(1, args=B, call="b"), piece(1, "search"),
        piece(0, "lookup"), piece(0, args=A[5:]),
    ],
    "late ids": [
        piece(0, "lookup", A[:5]), piece(1, "search", B), piece(1, args="", call="b"),
        piece(0, args=A[5:], call="a"),
    ],
    "text between": [
        piece(0, "lookup", "", "a"), {"content": "hm"}, piece(0, args=A), {"content": "m"},
        piece(1, "search", B, "b"),
    ],
    "blanks between": [
        piece(0, "lookup", A, "a"), {"content": "\n"}, piece(1, "search", B, "b"),
    ],
}  # fmt: skip


def chunks_of(*deltas: dict[str, Any], finish: str = "tool_calls") -> list[dict[str, Any]]:
    chunks = [{**HEAD, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return [*chunks, {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}]


@pytest.mark.parametrize("deltas", SHAPES.values(), ids=SHAPES)
def test_calls_come_through_both_doors_whatever_the_order_of_their_deltas(
    deltas: list[dict[str, Any]],
) -> None:
    message = folded_message(streamed(MessagesAnswer(), chunks_of(*deltas)))
    uses = [b for b in message["content"] if b["type"] == "tool_use"]
    assert [(u["id"], u["name"], u["input"]) for u in uses] == [
        ("a", "lookup", {"entity": "A"}),
        ("b", "search", {"entity": "B"}),
    ]
    response = folded_response(streamed(ResponsesAnswer({}), chunks_of(*deltas)))
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert [(c["call_id"], c["name"], c["arguments"]) for c in calls] == [
        ("a", "lookup", A),
        ("b", "search", B),
    ]
    wanted = "".join(delta.get("content", "") for delta in deltas).strip()
    assert "".join(b["text"] for b in message["content"] if b["type"] == "text") == wanted
    said = [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]
    assert "".join(said) == wanted


@pytest.mark.parametrize("make", [MessagesAnswer, lambda: ResponsesAnswer({})])
def test_text_is_never_held_back(make: Callable[[], DoorAnswer]) -> None:
    door = make()
    for delta in SHAPES["text between"]:
        chunk = {**HEAD, "choices": [{"index": 0, "delta": delta}]}
        out = door.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
        if "content" in delta:
            assert events_of(out)[-1]["type"].endswith("delta")


def test_arguments_stream_as_they_come() -> None:
    """In the Responses API; and a call that is whole ends when the next one begins."""
    deltas = (
        piece(0, "lookup", "", "a"), piece(0, args=A[:8]), piece(0, args=A[8:]),
        piece(1, "search", B[:8], "b"), piece(1, args=B[8:]),
    )  # fmt: skip
    events = streamed(ResponsesAnswer({}), chunks_of(*deltas))
    kinds = [e["type"].removeprefix("response.") for e in events[2:-1]]
    delta = "function_call_arguments.delta"
    one = ["output_item.added", delta, delta, "function_call_arguments.done", "output_item.done"]
    assert kinds == [*one, *one]


def test_numbers_of_any_size_stay_what_they_are() -> None:
    big = '{"id":12345678901234567890123,"y":0.1}'
    body = {**HEAD, "choices": [{"message": piece(0, "lookup", big, "a")}]}
    raw = MessagesAnswer().fold(orjson.dumps(body))
    assert b'"input":' + big.encode() in raw
    assert json.loads(raw)["content"][0]["input"]["id"] == 12345678901234567890123
    folded = folded_message(streamed(MessagesAnswer(), chunks_of(piece(0, "lookup", big, "a"))))
    assert folded["content"] == json.loads(raw)["content"]


@pytest.mark.parametrize("make", [MessagesAnswer, lambda: ResponsesAnswer({})])
def test_what_cannot_be_said_is_an_error_of_the_upstream(make: Callable[[], DoorAnswer]) -> None:
    for body in (
        {**HEAD, "choices": []},
        {**HEAD, "choices": [{"message": piece(0, None, A, "a"), "finish_reason": "stop"}]},
        {**HEAD, "choices": [{"message": "x"}]},
    ):
        with pytest.raises(UpstreamProtocol):
            make().fold(orjson.dumps(body))
    for chunks in ([{**HEAD, "choices": [], "usage": {}}], [{"choices": "x"}]):
        with pytest.raises(UpstreamProtocol):
            streamed(make(), chunks)
    with pytest.raises(UpstreamProtocol):
        streamed(make(), chunks_of(piece(0, None, A, "a")))


def test_a_call_that_was_cut_before_its_name_is_left_out() -> None:
    folded = folded_message(
        streamed(MessagesAnswer(), chunks_of(piece(0, call="a"), finish="length"))
    )
    assert (folded["content"], folded["stop_reason"]) == ([], "max_tokens")


@pytest.mark.parametrize(
    ("finish", "stop_reason", "status", "why"),
    [
        ("stop", "end_turn", "completed", None),
        ("repetition", "end_turn", "completed", None),
        ("length", "max_tokens", "incomplete", "max_output_tokens"),
        ("content_filter", "refusal", "incomplete", "content_filter"),
        ("refusal", "refusal", "incomplete", "content_filter"),
    ],
)
def test_how_an_answer_ends(finish: str, stop_reason: str, status: str, why: str | None) -> None:
    chunks = chunks_of({"content": "Hi"}, finish=finish)
    assert folded_message(streamed(MessagesAnswer(), chunks))["stop_reason"] == stop_reason
    response = folded_response(streamed(ResponsesAnswer({}), chunks))
    assert response["status"] == status
    assert response["incomplete_details"] == (why and {"reason": why})
    assert response["output"][-1]["status"] == status
    body = {**HEAD, "choices": [{"message": {"content": "Hi"}, "finish_reason": finish}]}
    assert json.loads(MessagesAnswer().fold(orjson.dumps(body)))["stop_reason"] == stop_reason
    assert json.loads(ResponsesAnswer({}).fold(orjson.dumps(body)))["status"] == status


def test_an_answer_that_the_server_broke_off_is_no_answer() -> None:
    chunks = chunks_of({"content": "Hi"}, finish="abort")
    body = {**HEAD, "choices": [{"message": {"content": "Hi"}, "finish_reason": "abort"}]}
    events = streamed(MessagesAnswer(), chunks)
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "api_error")
    with pytest.raises(UpstreamProtocol, match="abort"):
        MessagesAnswer().fold(orjson.dumps(body))
    failed = folded_response(streamed(ResponsesAnswer({}), chunks))
    whole = json.loads(ResponsesAnswer({}).fold(orjson.dumps(body)))
    for response in (failed, whole):
        assert response["status"] == "failed"
        assert response["error"]["code"] == "server_error"
        assert response["output"][0]["content"][0]["text"] == "Hi"


def test_a_refusal_is_said_as_each_api_says_it() -> None:
    chunks = chunks_of({"refusal": "I can"}, {"refusal": "not"}, finish="stop")
    message = folded_message(streamed(MessagesAnswer(), chunks))
    assert message["content"] == [{"type": "text", "text": "I cannot"}]
    assert message["stop_reason"] == "refusal"
    response = folded_response(streamed(ResponsesAnswer({}), chunks))
    assert response["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot"}]


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning": "", "reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": ""},
    ],
)
def test_reasoning_has_either_name_or_both(said: dict[str, str]) -> None:
    content = folded_message(streamed(MessagesAnswer(), chunks_of(said)))["content"]
    assert [b["thinking"] for b in content] == ["hm"]
    body = {**HEAD, "choices": [{"message": said}]}
    content = json.loads(MessagesAnswer().fold(orjson.dumps(body)))["content"]
    assert [b["thinking"] for b in content] == ["hm"]


def test_only_one_choice_is_told() -> None:
    both = [{"index": i, "delta": {"content": text}} for i, text in enumerate(("zero", "one"))]
    folded = folded_message(streamed(MessagesAnswer(), [{**HEAD, "choices": both}, *chunks_of()]))
    assert [b["text"] for b in folded["content"]] == ["zero"]


@pytest.mark.parametrize("error", ["engine died", {"message": "engine died", "code": 500}])
def test_an_error_in_the_stream_is_said_in_the_apis_own_way(error: Any) -> None:
    chunks = [*chunks_of({"content": "Hi"})[:1], {"error": error}]
    assert streamed(MessagesAnswer(), chunks)[-1]["error"]["message"] == "engine died"
    failed = streamed(ResponsesAnswer({}), chunks)[-1]
    assert failed["response"]["error"] == {"code": "server_error", "message": "engine died"}


def test_comments_and_other_line_ends_change_nothing() -> None:
    door, plain = MessagesAnswer(), MessagesAnswer()
    for chunk in chunks_of({"content": "Hi"}):
        data = orjson.dumps(chunk)
        said = door.feed(b": ping\nevent: message\ndata:" + data + b"\n\n")
        assert door.feed(b": keep-alive\n\n") == b""
        assert said == plain.feed(b"data: " + data + b"\n\n")

"""What a client puts together from told calls is what is stored of them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from entrogate.turn.choice import Choice
from entrogate.turn.events import ToldCalls, read_chunk, without_finish
from tests.unit.turn.capabilities import CAPABILITIES

_piece = st.fixed_dictionaries(
    {"index": st.integers(0, 2)},
    optional={
        "id": st.sampled_from(["", "a", "b", None]),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["", "look", "lookup", "up", None]),
                "arguments": st.sampled_from(["", '{"a":', "1}", None]),
            },
        ),
    },
)


@given(st.lists(st.lists(_piece, min_size=1, max_size=3), max_size=8))
def test_a_client_that_appends_gets_what_is_stored(deltas: list[list[dict[str, Any]]]) -> None:
    choice, told = Choice(0, CAPABILITIES, "<tool_call>"), ToldCalls()
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        data = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": delta}}]}).encode()
        choice.add(read_chunk(data).choices[0].delta)
        event = told.tell(b"data: " + data + b"\n\n", data, choice)
        for piece in json.loads(event[6:])["choices"][0]["delta"]["tool_calls"]:
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            function = piece.get("function") or {}
            call["id"] += piece.get("id") or ""
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    assert calls == {
        call.index: {"id": call.call_id, "name": call.name, "arguments": call.arguments}
        for call in choice.proposed()
    }


def test_an_event_that_tells_nothing_new_stays_as_it_is() -> None:
    choice, told = Choice(0, CAPABILITIES, "<tool_call>"), ToldCalls()
    first = {"index": 0, "id": "x", "function": {"name": "lookup", "arguments": ""}}
    for piece in (first, {"index": 0, "function": {"arguments": '{"a" : 1}'}}):
        data = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}).encode()
        choice.add(read_chunk(data).choices[0].delta)
        event = told.tell(b"data: " + data + b"\n\n", data, choice)
    assert event == b"data: " + data + b"\n\n"


def test_a_chunk_that_calls_and_finishes_is_two() -> None:
    choice = {"index": 0, "delta": {"tool_calls": [1]}, "finish_reason": "tool_calls"}
    said, ended = without_finish({"id": "a", "choices": [{**choice, "stop_reason": None}]})
    assert said["choices"] == [{"index": 0, "delta": {"tool_calls": [1]}, "finish_reason": None}]
    assert ended["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
        "stop_reason": None,
    }

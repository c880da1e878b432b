"""Requests of the other APIs as chat requests: what they say stays, what is wrong is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.errors import RequestError
from entrogate.wire.messages.request import parse_count, parse_messages
from entrogate.wire.request import ChatRequest
from entrogate.wire.responses.request import responses_request

Json = dict[str, Any]
TEXT = st.text(min_size=1, max_size=12)
OBJECTS = st.dictionaries(TEXT, TEXT | st.integers(), max_size=2)
WRONG: list[Any] = [
    None, True, -1, 0.5, "", "function", [], [[]], ["x"], [{}], [{"type": []}], {},
    {"type": []}, {"type": {}}, {"type": "text"}, {"type": "message", "role": []},
]  # fmt: skip
FUNCTION = {
    "name": "lookup",
    "description": "finds things",
    "parameters": {"type": "object", "properties": {"entity": {"type": "string"}}},
}
MESSAGES: Json = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Who?"},
                {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "call_1", "name": "lookup", "input": {"entity": "Ada"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [{"type": "text", "text": "Berlin"}],
                },
            ],
        },
    ],
    "tools": [{"name": "lookup", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "lookup"},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "output_config": {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {"type": "object"}},
    },
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
}
RESPONSES: Json = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Who?"},
                {"type": "input_image", "image_url": "http://x/y.png", "detail": "low"},
            ],
        },
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "Berlin"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "lookup"},
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "include": ["reasoning.encrypted_content"],
    "truncation": "disabled",
}


def from_messages(body: Json) -> ChatRequest:
    return parse_messages(orjson.dumps(body))


PARSERS: dict[str, tuple[Json, Callable[[Json], object]]] = {
    "messages": (MESSAGES, from_messages),
    "count": (MESSAGES, lambda body: parse_count(orjson.dumps(body))),
    "responses": (RESPONSES, responses_request),
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in ``value`` with each of its keys."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


@pytest.mark.parametrize("name", PARSERS)
def test_anything_anywhere_is_taken_or_refused(name: str) -> None:
    """Nothing that a client can write is a fault of ours."""
    good, parse = PARSERS[name]
    refused = 0
    for place in range(len(places(good))):
        for wrong in WRONG:
            body = copy.deepcopy(good)
            holder, key = places(body)[place]
            holder[key] = wrong
            try:
                parse(body)
            except RequestError as error:
                refused += str(error) != "" and error.status == 400
    assert refused > 100


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Chat messages of an agent, as a chat client would send them."""
    messages: list[Json] = [{"role": "user", "content": draw(TEXT)}]
    for turn in range(draw(st.integers(0, 3))):
        message: Json = {"role": "assistant", "content": draw(TEXT)}
        reasoning = draw(st.none() | TEXT)
        if reasoning is not None:
            message["reasoning"] = reasoning
        calls = draw(st.lists(OBJECTS, max_size=3))
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_eg{turn}{n}",
                    "type": "function",
                    "function": {"name": "lookup", "arguments": orjson.dumps(given).decode()},
                }
                for n, given in enumerate(calls)
            ]
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": draw(TEXT)}
            for call in message.get("tool_calls", ())
        ]
        if not calls:
            messages.append({"role": "user", "content": draw(TEXT)})
    return messages


def as_messages(chat: list[Json]) -> list[Json]:
    """The same conversation as an Anthropic client writes it."""
    written: list[Json] = []
    for message in chat:
        if message["role"] == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
            }
            if written[-1]["role"] != "user":
                written.append({"role": "user", "content": []})
            written[-1]["content"].append(result)
            continue
        blocks: list[Json] = []
        if "reasoning" in message:
            blocks.append({"type": "thinking", "thinking": message["reasoning"], "signature": ""})
        blocks.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls", ()):
            function = call["function"]
            given = json.loads(function["arguments"])
            use = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}
            blocks.append(use)
        written.append({"role": message["role"], "content": blocks})
    return written


def as_items(chat: list[Json]) -> list[Json]:
    """The same conversation as items of the Responses API."""
    items: list[Json] = []
    for message in chat:
        if message["role"] == "tool":
            call_id, output = message["tool_call_id"], message["content"]
            items.append({"type": "function_call_output", "call_id": call_id, "output": output})
            continue
        if "reasoning" in message:
            part = {"type": "reasoning_text", "text": message["reasoning"]}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        items.append({"role": message["role"], "content": message["content"]})
        items += [
            {"type": "function_call", "call_id": call["id"], **call["function"]}
            for call in message.get("tool_calls", ())
        ]
    return items


@given(chat=conversations())
def test_a_conversation_is_the_one_that_chat_has(chat: list[Json]) -> None:
    head: Json = {"model": "m", "max_tokens": 9}
    assert from_messages({**head, "messages": as_messages(chat)}).messages == chat
    assert responses_request({"model": "m", "input": as_items(chat)}).messages == chat


def test_tools_and_choices_are_said_as_chat_says_them() -> None:
    tool = {"name": "lookup", "description": "finds things", "input_schema": {"type": "object"}}
    wanted = {**FUNCTION, "parameters": {"type": "object"}}
    body = from_messages({**MESSAGES, "tools": [tool]}).body
    assert orjson.dumps(body["tools"]) == orjson.dumps([{"type": "function", "function": wanted}])
    body = responses_request(RESPONSES).body
    assert orjson.dumps(body["tools"]) == orjson.dumps([{"type": "function", "function": FUNCTION}])
    named = {"type": "function", "function": {"name": "lookup"}}
    for asked, chosen in (("auto", "auto"), ("any", "required"), ("none", "none")):
        assert (
            from_messages({**MESSAGES, "tool_choice": {"type": asked}}).body["tool_choice"]
            == chosen
        )
    assert from_messages(MESSAGES).body["tool_choice"] == named
    assert body["tool_choice"] == named
    alone = {"type": "auto", "disable_parallel_tool_use": True}
    assert from_messages({**MESSAGES, "tool_choice": alone}).body["parallel_tool_calls"] is False


@pytest.mark.parametrize("name", PARSERS)
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    good, parse = PARSERS[name]
    with pytest.raises(RequestError, match="no_such_field"):
        parse({**good, "no_such_field": 1})
    parse({**good, "no_such_field": None, "seed": 7})


def test_what_comes_after_a_call_is_another_turn() -> None:
    """As where a client drops the outputs of calls: two turns must not become one."""
    said = {"role": "assistant", "content": "One."}
    call = {"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": "{}"}
    first, second = responses_request({"model": "m", "input": [said, call, said]}).messages
    assert [c["id"] for c in first["tool_calls"]] == ["call_1"]
    assert second == said


def roles(request: ChatRequest) -> list[tuple[str, Any]]:
    return [(m["role"], m["content"]) for m in request.messages]


def test_what_instructs_the_model_is_one_message_at_the_beginning() -> None:
    rules = {"role": "developer", "content": "RULES"}
    parts = {"role": "system", "content": [{"type": "input_text", "text": t} for t in "AB"]}
    hi = {"role": "user", "content": "hi"}
    for instructions, items, wanted in (
        ("BASE", [rules, hi], "BASE\n\nRULES"),
        ("BASE", [hi], "BASE"),
        ("", [rules, hi], "RULES"),
        (None, [rules, parts, hi], "RULES\n\nA\nB"),
    ):
        body = {"model": "m", "instructions": instructions, "input": items}
        assert roles(responses_request(body)) == [("system", wanted), ("user", "hi")]
    later = responses_request({"model": "m", "instructions": "BASE", "input": [hi, rules, hi]})
    assert roles(later) == [("system", "BASE"), ("user", "hi"), ("user", "RULES"), ("user", "hi")]
    image = {"role": "system", "content": [{"type": "input_image", "image_url": "http://x"}]}
    (system, _) = responses_request({"model": "m", "input": [rules, image, hi]}).messages
    assert [part["type"] for part in system["content"]] == ["text", "image_url"]


def test_the_messages_api_has_one_system_message_too() -> None:
    said = [
        {"role": "system", "content": "x-anthropic-billing-header: 1"},
        {"role": "system", "content": [{"type": "text", "text": "RULES"}]},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "NOTE"},
    ]
    blocks = [{"type": "text", "text": text} for text in ("x-anthropic-billing-header", "A", "B")]
    for system, wanted in ((blocks, "AB\n\nRULES"), ("BASE", "BASE\n\nRULES"), (None, "RULES")):
        body: Json = {"model": "m", "max_tokens": 9, "messages": said, "system": system}
        assert roles(from_messages(body)) == [
            ("system", wanted), ("user", "hi"), ("user", "NOTE"),
        ]  # fmt: skip


def test_only_plain_text_is_the_beginning_of_an_answer() -> None:
    use = {"type": "tool_use", "id": "c", "name": "lookup", "input": {"entity": "Ada"}}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    words = {"type": "text", "text": "It is"}
    cases: list[tuple[Any, bool, bool]] = [
        ("It is", True, False),
        ([words], True, False),
        ([words, use], False, True),
        ([thinking, words], False, False),
    ]
    for content, begun, calls in cases:
        messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": content}]
        body: Json = {"model": "m", "max_tokens": 9, "messages": messages}
        assert ("continue_final_message" in from_messages(body).body) is begun
        counted = orjson.loads(parse_count(orjson.dumps(body)))
        assert ("continue_final_message" in counted) is begun
        assert ("tool_calls" in counted["messages"][-1]) is calls
    question = {"role": "user", "content": "?"}
    for status, begun in (("incomplete", True), ("in_progress", True), ("completed", False)):
        item = {"role": "assistant", "content": "It is", "status": status}
        asked = responses_request({"model": "m", "input": [question, item]})
        assert ("continue_final_message" in asked.body) is begun


def test_what_newer_clients_send_is_taken() -> None:
    codex: Json = {
        "model": "m",
        "input": "hi",
        "store": False,
        "client_metadata": {"x-codex-installation-id": "0"},
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "text": {"verbosity": "low"},
    }
    sent = responses_request(codex).body
    assert set(sent) == {"model", "messages"}
    code: Json = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "context_management": {"edits": []},
        "betas": ["x"],
        "mcp_servers": [],
        "output_format": {"type": "json_schema", "schema": {"type": "object"}},
    }
    assert from_messages(code).body["response_format"]["type"] == "json_schema"


X = [{"type": "text", "text": "x"}]
PLAIN = {"type": "text", "media_type": "text/plain", "data": "x"}


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ({"type": "tool_reference", "tool_name": "lookup"}, "lookup"),
        ({"type": "search_result", "title": "T", "source": "S", "content": X}, "T\nS\nx"),
        ({"type": "document", "title": "T", "source": PLAIN}, "T\nx"),
        ({"type": "document", "source": {"type": "content", "content": X}}, "x"),
        ({"type": "document", "source": {"type": "content", "content": "x"}}, "x"),
    ],
)
def test_results_that_are_texts_are_taken_as_texts(block: Json, wanted: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    body: Json = {"model": "m", "max_tokens": 9}
    (message,) = from_messages(
        {**body, "messages": [{"role": "user", "content": [result]}]}
    ).messages
    assert message == {"role": "tool", "tool_call_id": "c", "content": wanted}
    (message,) = from_messages(
        {**body, "messages": [{"role": "user", "content": [block]}]}
    ).messages
    assert message["content"] == wanted


def test_log_probs_are_asked_for_by_include() -> None:
    included: Json = {"model": "m", "input": "hi", "include": ["message.output_text.logprobs"]}
    body = responses_request({**included, "top_logprobs": 3}).body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert responses_request(included).body["top_logprobs"] == 0
    assert (
        "logprobs" not in responses_request({"model": "m", "input": "hi", "top_logprobs": 3}).body
    )
    for wrong in ("3", True, [3], -2):
        with pytest.raises(RequestError, match="top_logprobs"):
            responses_request({**included, "top_logprobs": wrong})

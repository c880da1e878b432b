"""The kinds of a chat body's parts: what is taken, what is refused and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from entrogate.errors import RequestError
from entrogate.wire import chat_fields
from entrogate.wire.body import to_json
from entrogate.wire.request import ChatRequest, parse_chat

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat(to_json({"messages": HI, **fields}))


@pytest.mark.parametrize("value", [True, "true", "True", "1", "yes", "on", "t", 1, 1.0])
def test_stream_is_read_as_vllm_reads_it(value: Any) -> None:
    request = parse(stream=value, stream_options={"include_usage": value})
    assert request.stream is True
    assert request.wanted.usage is True
    assert request.body["stream"] is True


@pytest.mark.parametrize("value", [False, None, "false", "0", "no", "off", 0, 0.0])
def test_and_so_is_its_absence(value: Any) -> None:
    request = parse(stream=value)
    assert request.stream is False
    assert request.body["stream"] is (None if value is None else False)


def test_options_of_a_stream_that_is_none_are_not_sent_with_it() -> None:
    options = {"include_usage": True}
    assert "stream_options" not in parse(stream="false", stream_options=options).body
    assert "stream_options" in parse(stream=False, stream_options=options).body  # vLLM refuses it


@pytest.mark.parametrize(
    ("value", "n"), [(3, 3), ("3", 3), (3.0, 3), (True, 1), (None, 1), (-1, 1)]
)
def test_n_is_read_as_vllm_reads_it(value: Any, n: int) -> None:
    assert parse(n=value).n == n


def test_what_resuming_needs_is_converted() -> None:
    body = parse(max_tokens="5", min_tokens=2.0, logit_bias={"7": "1.5"}).body
    assert (body["max_tokens"], body["min_tokens"], body["logit_bias"]) == (5, 2, {"7": 1.5})


def test_log_probs_are_sent_as_they_came() -> None:
    """vLLM looks at what was sent before it converts."""
    request = parse(logprobs="false", top_logprobs=3)
    assert (request.wanted.logprobs, request.body["logprobs"]) == (False, "false")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "maybe"}, "stream"),
        ({"stream": 2}, "stream"),
        ({"stream": []}, "stream"),
        ({"stream": True, "stream_options": "x"}, "stream_options"),
        ({"stream_options": [1]}, "stream_options"),
        ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"n": "x"}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 1e9}, "n"),
        ({"n": 10**30}, "n"),
        ({"logprobs": {}}, "logprobs"),
        ({"top_logprobs": "3"}, "top_logprobs"),
        ({"return_token_ids": "x"}, "return_token_ids"),
        ({"include_reasoning": []}, "include_reasoning"),
        ({"model": {}}, "model"),
        ({"model": 1}, "model"),
        ({"request_id": 1}, "request_id"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_completion_tokens": []}, "max_completion_tokens"),
        ({"min_tokens": {}}, "min_tokens"),
        ({"logit_bias": "x"}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"vllm_xargs": "x"}, "vllm_xargs"),
        ({"vllm_xargs": [1]}, "vllm_xargs"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {str(i): "" for i in range(200)}}, "metadata"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"response_format": "json"}, "response_format"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": ["auto"]}, "tool_choice"),
        ({"tools": "x"}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"function": "x"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": 1}}]}, "tools[0].function.name"),
        ({"tools": [{}] * 5000}, "tools"),
        ({"messages": [{}] * 30_000}, "messages"),
        ({"messages": [{"role": 1}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": 1}]}, "messages[0].tool_call_id"),
        ({"messages": [{"tool_calls": "x"}]}, "messages[0].tool_calls"),
        ({"messages": [{"tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"tool_calls": [{"id": 1}]}]}, "messages[0].tool_calls[0].id"),
        (
            {"messages": [{"tool_calls": [{"function": "x"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        (
            {"messages": [{"tool_calls": [{"function": {"name": []}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"messages": [{"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 15_000}] * 2}, "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_kinds_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert param in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "tool_choice": None, "metadata": None, "stream_options": None},
        {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": None}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL, {"id": "b"}]}]},
        {"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}, {"x": 1}]}]},
        {"seed": 10**30, "temperature": "hot", "anything": [[[]]], "chat_template_kwargs": 1},
    ],
)
def test_of_the_rest_vllm_is_the_judge(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert request.body == {"messages": HI, **fields}


def test_metadata_becomes_texts() -> None:
    request = parse(metadata={"a": "x", "b": 10**25, "c": {"d": [True, None]}})
    assert request.metadata == {"a": "x", "b": str(10**25), "c": '{"d":[true,null]}'}


def test_big_numbers_are_stored_and_sent_as_they_came() -> None:
    schema = {"type": "object", "properties": {"id": {"const": 10**25}}}
    request = parse(seed=10**25, tools=[{"function": {"name": "f", "parameters": schema}}])
    assert str(10**25).encode() in request.params()
    assert str(10**25).encode() in (request.tools() or b"")


def test_the_flags_of_the_other_doors() -> None:
    assert chat_fields.flag("true", "stream") is True
    with pytest.raises(RequestError, match=r'stream: want true or false; found "x"'):
        chat_fields.flag("x", "stream")

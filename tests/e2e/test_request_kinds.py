"""What the gateway reads of a request is what vLLM's own models read of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from entrogate.errors import RequestError
from entrogate.wire.body import to_json
from entrogate.wire.request import ChatRequest, parse_chat

protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 0.0, 1.0, 1.5, 3, 5.0, 10**30, [], [1], {}, {"a": 1}),
    *("", "x", "true", "True", "TRUE", "t", "y", "yes", "on", "off", "no", "n", "f", "false"),
    *("0", "1", "2", " 1", "1.0", " true", "null"),
]
FIELDS = (
    "stream", "logprobs", "return_token_ids", "include_reasoning", "n", "max_tokens",
    "max_completion_tokens", "min_tokens", "model", "request_id", "logit_bias", "stream_options",
    "tools", "tool_choice", "response_format", "vllm_xargs",
)  # fmt: skip


def of_vllm(body: dict[str, Any]) -> Any:
    """vLLM's reading of ``body``; None where it refuses it, however it says so."""
    try:
        return protocol.ChatCompletionRequest.model_validate(json.loads(json.dumps(body)))
    except (ValueError, TypeError, AttributeError, KeyError, protocol.VLLMValidationError):
        return None


def of_ours(body: dict[str, Any]) -> ChatRequest | None:
    try:
        return parse_chat(to_json(body))
    except RequestError:
        return None


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_is_refused_that_vllm_takes(field: str) -> None:
    for value in VALUES:
        body = {**HI, field: value}
        if of_vllm(body) is not None and not (field == "n" and value == 10**30):
            assert of_ours(body) is not None, value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_flags_and_numbers_mean_the_same(value: Any) -> None:
    for field in ("stream", "logprobs", "return_token_ids", "n"):
        theirs, ours = of_vllm({**HI, field: value}), of_ours({**HI, field: value})
        if theirs is None or ours is None:
            continue
        read = {
            "stream": ours.stream,
            "logprobs": ours.wanted.logprobs,
            "return_token_ids": ours.wanted.token_ids,
            "n": ours.n,
        }[field]
        wanted = getattr(theirs, field)
        assert read == (max(wanted or 1, 1) if field == "n" else bool(wanted))


@pytest.mark.parametrize("stream", [True, "true", 1, "on"])
def test_the_usage_event(stream: Any) -> None:
    for usage in VALUES:
        body = {**HI, "stream": stream, "stream_options": {"include_usage": usage}}
        theirs, ours = of_vllm(body), of_ours(body)
        assert (theirs is None) == (ours is None), usage
        if ours is not None:
            assert ours.wanted.usage == bool(theirs.stream_options.include_usage)


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_sent_on_means_what_came(field: str) -> None:
    for value in VALUES:
        body = {**HI, field: value}
        theirs, ours = of_vllm(body), of_ours(body)
        if theirs is None or ours is None or field == "request_id":
            continue
        again = of_vllm(ours.body)
        assert again is not None, value
        for name in ("stream", "n", "max_tokens", "min_tokens", "logit_bias", "logprobs", "model"):
            assert vars(again)[name] == vars(theirs)[name], (name, value)

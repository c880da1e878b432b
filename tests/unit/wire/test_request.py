"""What is sent upstream, and what of it the client asked for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from entrogate.errors import RequestError
from entrogate.wire.request import parse_chat


def _parse(**fields: Any) -> Any:
    return parse_chat(orjson.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}))


def test_ids_logprobs_and_usage_are_always_asked_for() -> None:
    sent = _parse(stream=True, temperature=0.5, custom={"kept": [1]}).upstream(20)
    assert sent["return_token_ids"] is True
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 20)
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["temperature"] == 0.5
    assert sent["custom"] == {"kept": [1]}


@pytest.mark.parametrize(("asked", "sent"), [(3, 20), (40, 40), (-1, -1)])
def test_the_larger_wish_for_alternatives_is_sent(asked: int, sent: int) -> None:
    request = _parse(logprobs=True, top_logprobs=asked)
    assert request.upstream(20)["top_logprobs"] == sent
    assert request.wanted.top_logprobs == asked


def test_hidden_reasoning_hides_metadata_from_the_client_but_not_from_us() -> None:
    request = _parse(include_reasoning=False, logprobs=True, return_token_ids=True)
    assert request.upstream(20)["include_reasoning"] is True
    assert not request.wanted.logprobs
    assert not request.wanted.token_ids
    assert not request.wanted.reasoning


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "auto"),
        ({"tool_choice": "required"}, "required"),
        ({"tool_choice": "none"}, "none"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "named"),
        ({"response_format": {"type": "json_object"}}, "constrained"),
        ({"response_format": {"type": "text"}}, "auto"),
        ({"structured_outputs": {"regex": "a"}}, "constrained"),
    ],
)
def test_tool_choice(fields: dict[str, Any], expected: str) -> None:
    assert _parse(**fields).tool_choice == expected


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"x"', b"{}", b'{"messages": "x"}', b'{"messages": [1]}', b"\xff"]
)
def test_a_body_that_cannot_be_served_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(raw)
    assert caught.value.status == 400


def test_params_leave_out_what_is_stored_elsewhere() -> None:
    request = _parse(model="m", seed=3, stream=True, tools=[{"type": "function"}])
    assert orjson.loads(request.params()) == {"seed": 3}
    assert orjson.loads(request.tools() or b"") == [{"type": "function"}]

"""What we injected goes, every other byte stays; checked against parsing and editing the JSON."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.strip import Wanted, strip_body, strip_event

NOTHING = Wanted(logprobs=False, top_logprobs=0, token_ids=False, usage=False, reasoning=True)
_text = st.one_of(
    st.text(max_size=12),
    # what a hostile model could write to look like the keys that we cut at
    st.sampled_from(
        [
            '"logprobs":{',
            ',"finish_reason":',
            '"token_ids":[1]',
            '\\"logprobs\\":{"x":1}',
            "]}",
            "\\",
        ]
    ),
)
_token = st.fixed_dictionaries(
    {
        "token": _text,
        "logprob": st.floats(-50, 0),
        "bytes": st.lists(st.integers(0, 255), max_size=3),
        "top_logprobs": st.lists(
            st.fixed_dictionaries({"token": _text, "logprob": st.floats(-50, 0)}), max_size=4
        ),
    }
)


@st.composite
def chunks(draw: st.DrawFn) -> dict[str, Any]:
    tokens = draw(st.lists(_token, max_size=3))
    chunk: dict[str, Any] = {
        "id": draw(_text),
        "choices": [
            {
                "index": 0,
                "delta": {"content": draw(_text), draw(_text): draw(_text)},
                "logprobs": draw(st.sampled_from([None, {"content": tokens}])),
                "finish_reason": draw(st.sampled_from([None, "stop"])),
                "token_ids": [7] * len(tokens),
            }
        ],
        "prompt_token_ids": draw(st.sampled_from([None, [1, 2, 3]])),
    }
    return chunk


def _event(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


@given(chunks())
def test_cutting_bytes_equals_editing_the_json(chunk: dict[str, Any]) -> None:
    expected = orjson.loads(orjson.dumps(chunk))
    choice = expected["choices"][0]
    choice["logprobs"] = choice["token_ids"] = expected["prompt_token_ids"] = None
    assert strip_event(_event(chunk), NOTHING) == _event(expected)


@given(chunks(), st.integers(0, 5))
def test_a_client_gets_as_many_alternatives_as_it_asked_for(chunk: dict[str, Any], k: int) -> None:
    wanted = Wanted(logprobs=True, top_logprobs=k, token_ids=True, usage=False, reasoning=True)
    expected = orjson.loads(orjson.dumps(chunk))
    for token in (expected["choices"][0]["logprobs"] or {}).get("content", ()):
        token["top_logprobs"] = token["top_logprobs"][:k]
    assert orjson.loads(strip_event(_event(chunk), wanted)[6:]) == expected


@given(st.lists(chunks(), min_size=1, max_size=3))
def test_every_choice_of_a_body_is_stripped(parts: list[dict[str, Any]]) -> None:
    body = {"choices": [c for p in parts for c in p["choices"]], "prompt_token_ids": [1]}
    expected = orjson.loads(orjson.dumps(body))
    for choice in expected["choices"]:
        choice["logprobs"] = choice["token_ids"] = None
    expected["prompt_token_ids"] = None
    assert strip_body(orjson.dumps(body), NOTHING) == orjson.dumps(expected)


def test_hidden_reasoning_is_taken_out() -> None:
    wanted = Wanted(logprobs=False, top_logprobs=0, token_ids=False, usage=False, reasoning=False)
    body = {
        "choices": [
            {
                "message": {"content": "a", "reasoning": "b"},
                "logprobs": None,
                "finish_reason": "stop",
                "token_ids": [1],
            }
        ]
    }
    message = json.loads(strip_body(orjson.dumps(body), wanted))["choices"][0]["message"]
    assert message == {"content": "a", "reasoning": None}


@given(chunks(), st.booleans())
def test_another_order_of_fields_hides_as_much(chunk: dict[str, Any], whole: bool) -> None:
    choice = chunk["choices"][0]
    chunk["choices"] = [{key: choice[key] for key in reversed(choice)}]
    expected = orjson.loads(orjson.dumps(chunk))
    shown = expected["choices"][0]
    shown["logprobs"] = shown["token_ids"] = expected["prompt_token_ids"] = None
    if whole:
        assert orjson.loads(strip_body(orjson.dumps(chunk), NOTHING)) == expected
    else:
        assert orjson.loads(strip_event(_event(chunk), NOTHING)[6:]) == expected

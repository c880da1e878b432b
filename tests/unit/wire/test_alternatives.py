"""Finding the tool-call token in the bytes equals reading all the JSON."""

from __future__ import annotations

import math
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.alternatives import marks_of, probabilities

CALL = "<tool_call>"
_text = st.one_of(
    st.text(max_size=6),
    st.sampled_from([CALL, "}]", '{"token":"', '"token":"<tool_call>","logprob":', "]},{", '"']),
)
_logprob = st.floats(-30, 0).map(lambda x: round(x, 6))


def _alternative(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


@st.composite
def contents(draw: st.DrawFn) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        texts = draw(st.lists(_text, max_size=4, unique=True))
        top = [_alternative(text, draw(_logprob)) for text in texts]
        content.append(_alternative(draw(_text), draw(_logprob)) | {"top_logprobs": top})
    return content


def _by_reading(content: list[dict[str, Any]]) -> list[float]:
    named = [{t["token"]: t["logprob"] for t in token["top_logprobs"]} for token in content]
    return [math.exp(n[CALL]) if CALL in n else math.nan for n in named]


@given(contents())
def test_bytes_equal_json(content: list[dict[str, Any]]) -> None:
    answer = orjson.dumps({"choices": [{"index": 0, "logprobs": {"content": content}}]})
    found = probabilities(answer, marks_of([CALL]), len(content))
    assert [str(p) for p in found] == [str(p) for p in _by_reading(content)]


def test_a_server_may_name_tokens_by_id() -> None:
    content = [_alternative("x", 0.0) | {"top_logprobs": [_alternative("token_id:7", -1.0)]}]
    answer = orjson.dumps({"choices": [{"logprobs": {"content": content}}]})
    assert probabilities(answer, marks_of([CALL, "token_id:7"]), 1) == [math.exp(-1.0)]


def test_another_number_of_tokens_is_no_answer() -> None:
    content = [_alternative("x", 0.0) | {"top_logprobs": [_alternative(CALL, -1.0)]}]
    answer = orjson.dumps({"choices": [{"logprobs": {"content": content}}]})
    assert all(math.isnan(p) for p in probabilities(answer, marks_of([CALL]), 2))

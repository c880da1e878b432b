"""Whatever a server writes is made uniform, or refused as UpstreamProtocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.errors import UpstreamProtocol
from entrogate.wire.dialects import uniform

NUMBERS = st.sampled_from(["1e999", "-1e999", "NaN", "Infinity", "1.5", "-3", "9" * 40, "1e308"])
FIELDS = (
    *("id", "created", "model", "usage", "choices", "index", "delta", "message", "content"),
    *("role", "tool_calls", "function", "name", "arguments", "logprobs", "token_ids"),
    *("finish_reason", "type", "text"),
)


def as_object(fields: dict[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
    return lists | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5).map(as_object)


TEXTS = st.sampled_from(["null", "true", '""', '"text"', '"\\ud800"', '"thinking"'])
VALUES = st.recursive(NUMBERS | TEXTS, nested, max_leaves=25)


CHOICES = st.lists(VALUES, min_size=1, max_size=3).map(lambda items: f"[{','.join(items)}]")
ANSWERS = st.builds(
    lambda fields, choices: as_object({**fields, "choices": choices}),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
    CHOICES,
)


@given(VALUES | ANSWERS)
def test_it_is_json_or_refused(text: str) -> None:
    try:
        made = uniform(text.encode())
    except UpstreamProtocol:
        return
    assert isinstance(json.loads(made), dict)


@pytest.mark.parametrize(
    ("written", "created"), [("17.9", 17), ("1e999", 0), ("-1.0", 0), ("NaN", 0), ('"x"', 0)]
)
def test_the_time_of_an_answer_is_a_whole_number(written: str, created: int) -> None:
    made: Any = json.loads(uniform(b'{"created":' + written.encode() + b',"choices":[]}'))
    assert made["created"] == created

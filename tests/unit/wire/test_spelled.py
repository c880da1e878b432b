"""Calls that a text spells, in the forms of the parsers, and texts that only speak of a tool."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.wire.spelled import spells_call

TOOLS = frozenset({"lookup", "search"})


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "lookup", "arguments": {"entity": "Oslo"}}',
        '  I will call {"name": "lookup", "parameters": {}} now.',
        '[{"name": "search", "arguments": {"q": "{"}}]',
        '{"type": "function", "function": {"name": "lookup", "arguments": "{}"}}',
        '{"function": "lookup", "arguments": {}}',
        "[lookup(entity='Oslo')]",
        "lookup(entity='(Oslo)')",
        '<tool_call>\n{"name": "any", "arg',
        "[TOOL_CALLS] …",
        '<invoke name="lookup">',
        'He said {"a": 1} and then {"name": "lookup", "arguments": {}}',
    ],
)
def test_a_call(text: str) -> None:
    assert spells_call(text, TOOLS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Oslo.",
        "I would call lookup(entity) to find out, but I know: Oslo.",
        '{"name": "Oslo", "arguments": 3}',
        '{"name": "lookup"}',
        '{"name": ["lookup"], "arguments": {}}',
        '{"lookup": {"arguments": {}}}',
        "[1, 2, 3]",
        "f(x) = (x)",
        "{" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_no_call(text: str) -> None:
    assert not spells_call(text, TOOLS)


def test_a_call_of_no_known_tool_is_one_by_its_marks_alone() -> None:
    spelled = json.dumps({"name": "lookup", "arguments": {}})
    assert not spells_call(spelled, ())
    assert spells_call(f"<tool_call>{spelled}", ())


@given(before=st.text(max_size=30), after=st.text(max_size=30), arguments=st.text(max_size=20))
def test_a_call_is_found_between_other_words(before: str, after: str, arguments: str) -> None:
    before = before.replace("{", "")  # a brace of the text may open another object
    call = json.dumps({"name": "search", "arguments": {"q": arguments}})
    assert spells_call(before + call + after, TOOLS)

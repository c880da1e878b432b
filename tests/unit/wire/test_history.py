"""Earlier calls and fingerprints of a message history."""

from __future__ import annotations

from typing import Any

from entrogate.wire.history import call_key, earlier_calls, fingerprint, last_assistant


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "where?"},
    {"role": "assistant", "content": None, "tool_calls": [_call("a", "f", '{"x":1}')]},
    {"role": "tool", "tool_call_id": "a", "content": "there"},
    {
        "role": "assistant",
        "content": "hm",
        "tool_calls": [_call("b", "f", '{ "x" : 1 }'), _call("c", "g", "{}")],
    },
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "t"}]},
]


def test_calls_are_joined_with_their_results() -> None:
    a, b, c = earlier_calls(HISTORY)
    assert (a.name, a.result, a.turn) == ("f", "there", 1)
    assert (b.result, b.turn) == (None, 3)
    assert c.result == '[{"text":"t","type":"text"}]'


def test_spacing_and_key_order_do_not_make_another_call() -> None:
    a, b, c = earlier_calls(HISTORY)
    assert a.key == b.key != c.key
    assert call_key("f", '{"a":1,"b":2}') == call_key("f", '{"b": 2, "a": 1}')
    assert call_key("f", '{"a":1}') != call_key("f", '{"a":"1"}')
    assert call_key("f", "not json") != call_key("f", "not  json")


def test_the_last_assistant_message_must_be_answered() -> None:
    assert last_assistant(HISTORY) == 3
    assert last_assistant(HISTORY[:2]) is None
    assert last_assistant(HISTORY[:1]) is None


def test_fingerprints_see_what_was_said_and_not_the_ids() -> None:
    other_ids = [
        *HISTORY[:1],
        {"role": "assistant", "content": "", "tool_calls": [_call("z", "f", '{"x":1}')]},
    ]
    assert fingerprint(HISTORY[:2]) == fingerprint(other_ids)
    with_reasoning = [HISTORY[0], {**HISTORY[1], "reasoning": "because"}]
    assert fingerprint(HISTORY[:2]) == fingerprint(with_reasoning)
    assert fingerprint(HISTORY[:1]) != fingerprint([{"role": "user", "content": "where"}])
    assert fingerprint(HISTORY) != fingerprint(HISTORY[:-1])

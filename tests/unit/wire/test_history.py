"""Earlier calls with their results, and fingerprints of a message history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entrogate.wire.history import (
    CallHistory,
    EarlierCall,
    Fingerprint,
    call_key,
    earlier_calls,
    fingerprint,
    last_assistant,
    text_of,
)

Json = dict[str, Any]


def _call(call_id: Any, name: str = "f", arguments: Any = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _calls(*calls: Json) -> Json:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def _result(call_id: Any, content: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


PARTS = [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
HISTORY: list[Json] = [
    {"role": "user", "content": "where?"},
    _calls(_call("a", "f", '{"x":1}')),
    _result("a", "there"),
    {
        "role": "assistant",
        "content": "hm",
        "tool_calls": [_call("b", "f", '{ "x" : 1 }'), _call("c", "g", "{}")],
    },
    _result("c", PARTS),
]


def test_results_that_are_marked_as_errors() -> None:
    messages = [_calls(_call("a"), _call("b"), _call("")), _result("a", "x"), _result("b", "y")]
    history = CallHistory.of(messages, {"b", "", "other"})
    assert [call.failed for call in history] == [False, True, False]
    assert not any(call.failed for call in earlier_calls(messages))


@pytest.mark.parametrize(
    ("spoken", "runs", "now"),
    [
        ("u c r c r", [0, 0], 0),
        ("u c r a u c r", [0, 1], 1),
        ("u c r a u", [0], 1),
        ("u a u a u c r", [2], 2),
        ("u c r u c r", [0, 0], 0),  # the model has not answered between them
        ("u c r a", [0], 0),  # what is to be continued
        ("u c r a a u u c r", [0, 1], 1),
        ("s u c r a s u c r", [0, 1], 1),
        ("u a c r", [0], 0),
    ],
)
def test_where_an_agent_began_anew(spoken: str, runs: list[int], now: int) -> None:
    said = {
        "s": {"role": "system", "content": "mind"},
        "u": {"role": "user", "content": "and?"},
        "a": {"role": "assistant", "content": "so."},
        "c": _calls(_call("x")),
        "r": _result("x", "y"),
    }
    history = CallHistory.of([said[letter] for letter in spoken.split()])
    assert [call.run for call in history] == runs
    assert history.run == now


def test_calls_are_joined_with_their_results() -> None:
    a, b, c = earlier_calls(HISTORY)
    assert (a.name, a.result, a.content, a.turn) == ("f", "there", "there", 1)
    assert (b.result, b.content, b.turn) == (None, None, 3)
    assert c.content is PARTS
    assert c.result == 't{"type":"image_url","image_url":{"url":"data:x"}}'


@pytest.mark.parametrize(
    ("messages", "results"),
    [
        ([_calls(_call("a"), _call("b")), _result("b", "B"), _result("a", "A")], ["A", "B"]),
        ([_result("a", "early"), _calls(_call("a"))], [None]),
        (
            [_calls(_call("a")), _result("a", "1"), _calls(_call("a")), _result("a", "2")],
            ["1", "2"],
        ),
        ([_calls(_call("a")), _calls(_call("a")), _result("a", "2")], [None, "2"]),
        ([_calls(_call("a")), _result("a", "1"), _calls(_call("a"))], ["1", None]),
        ([_calls(_call("a")), _result("a", "1"), _result("a", "2")], ["1"]),
        ([_calls(_call("a"), _call("a")), _result("a", "1"), _result("a", "2")], ["1", "2"]),
        ([_calls(_call("a"), _call("a")), _result("a", "whose?")], [None, None]),
        ([_calls(_call("a"), _call("a")), *[_result("a", "x")] * 3], [None, None]),
        ([_calls(_call("")), _result("", "x")], [None]),
        ([_calls(_call(None)), {"role": "tool", "content": "x"}], [None]),
        ([_calls(_call("a")), _result("a", None)], [""]),
        ([_calls(_call("a")), _result("a", [])], [""]),
        ([_calls(_call("a")), {**_result("a", "x"), "role": "user"}], [None]),
        ([{**_calls(_call("a")), "role": "user"}, _result("a", "x")], []),
        ([_calls(_call("a")), {"role": "assistant", "content": "so"}, _result("a", "x")], ["x"]),
    ],
)
def test_each_call_is_answered_by_the_result_that_belongs_to_it(
    messages: list[Json], results: list[str | None]
) -> None:
    assert [call.result for call in earlier_calls(messages)] == results


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ("a", "a"),
        ([], ""),
        ([{"type": "text", "text": "a"}], "a"),
        (["a", {"type": "text", "text": "b"}, {"text": "c"}], "abc"),
        ([{"type": "text"}, {"type": "x", "text": "a"}], '{"type":"text"}{"type":"x","text":"a"}'),
    ],
)
def test_the_text_of_a_content(content: Any, text: str) -> None:
    assert text_of(content) == text


def test_writing_does_not_make_another_call() -> None:
    a, b, c = earlier_calls(HISTORY)
    assert a.key == b.key != c.key
    assert call_key("f", '{"a":1,"b":2}') == call_key("f", '{"b": 2.0, "\\u0061": 1e0}')
    assert call_key("f", "") == call_key("f", " {} ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("f", '{"id":12345678901234567890123}'), ("f", '{"id":12345678901234567890124}')),
        (("f", '{"id":0.30000000000000001}'), ("f", '{"id":0.3}')),
        (("f", '{"a":1}'), ("f", '{"a":"1"}')),
        (("f", '{"a":1}'), ("f", '{"a":true}')),
        (("f", '{"a":1}'), ("g", '{"a":1}')),
        (("f", "not json"), ("f", "not  json")),
        (("f", "{}"), ("f", "null")),
        (("f1", "2"), ("f", "12")),
        (("f", '{"t":NaN}'), ("f", '{"t":null}')),
    ],
)
def test_different_calls(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert call_key(*one) != call_key(*other)


def test_the_index_of_a_history() -> None:
    history = CallHistory.of(HISTORY)
    f, g = call_key("f", '{"x":1}'), call_key("g", "{}")
    assert (history.repeats(f), history.repeats(g), history.repeats(b"x")) == (2, 1, 0)
    assert (history.count("f"), history.count("g"), history.count("h")) == (2, 1, 0)
    found = history.result_for(f)
    assert found is not None
    assert (found.call_id, found.content) == ("a", "there")
    assert history.result_for(call_key("g", "")) is history.calls[2]
    assert history.result_for(b"x") is None
    assert (len(history), history.last_called()) == (3, {"f", "g"})
    history.add(EarlierCall(call_id="d", name="f", key=f, result="now", turn=5, content="now"))
    found = history.result_for(f)
    assert found is not None
    assert (found.call_id, history.repeats(f), history.count("f")) == ("d", 3, 3)
    assert history.last_called() == {"f"}


def test_a_long_history_is_gone_through_once() -> None:
    """100,000 calls and as many questions; what is quadratic here takes hours."""
    many = 100_000
    messages = [_calls(_call(f"call_eg{i:024x}", f"f{i}", f'{{"a":{i}}}')) for i in range(many)]
    history = CallHistory.of([*messages, _result(f"call_eg{7:024x}", "x")])
    assert sum(history.repeats(call.key) for call in history) == many
    assert sum(history.count(f"f{i}") for i in range(many)) == many
    assert sum(history.result_for(call.key) is not None for call in history) == 1
    assert history.minted_ids(3) == [f"call_eg{i:024x}" for i in range(many - 1, many - 4, -1)]


def test_ids_that_were_minted_here_by_their_form() -> None:
    zeros, letters = "call_eg" + "0" * 24, "call_eg" + "a" * 24
    ids = [zeros, "call_eg1", "toolu_1", "", letters, zeros]
    history = CallHistory.of([_calls(*(_call(id_) for id_ in ids))])
    assert history.minted_ids() == [zeros, letters]
    assert history.minted_ids(1) == [zeros]


def test_the_last_assistant_message_must_be_answered() -> None:
    assert last_assistant(HISTORY) == 3
    assert last_assistant(HISTORY[:2]) is None
    assert last_assistant(HISTORY[:1]) is None


ASK: Json = {"role": "user", "content": "where is it?"}
SAID: Json = {"role": "assistant", "content": "There."}
CALLED = _calls(_call("a", "f", '{"x":1,"y":[2]}'))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ASK, {"role": "user", "content": [{"type": "text", "text": "where is it?"}]}),
        (ASK, {"role": "user", "content": ["where ", {"type": "text", "text": "is it?"}]}),
        (SAID, {**SAID, "reasoning": "because", "reasoning_content": "because"}),
        (SAID, {**SAID, "tool_calls": [], "refusal": None, "name": "bot"}),
        (CALLED, {**CALLED, "content": ""}),
        (CALLED, {**CALLED, "content": []}),
        (CALLED, {k: v for k, v in CALLED.items() if k != "content"}),
        (CALLED, _calls(_call("z", "f", '{ "y": [2.0], "x": 1 }'))),
        ({"role": "system", "content": "Be."}, {"role": "developer", "content": "Be."}),
        (_result("a", "r"), _result("b", [{"type": "text", "text": "r"}])),
        (
            {"role": "user", "content": PARTS},
            {"role": "user", "content": [dict(reversed(part.items())) for part in PARTS]},
        ),
    ],
)
def test_one_conversation_in_two_writings(one: Json, other: Json) -> None:
    assert fingerprint([ASK, one]) == fingerprint([ASK, other])


def test_different_conversations() -> None:
    histories: list[list[Json]] = [
        [],
        [ASK],
        [ASK, ASK],
        [{**ASK, "role": "assistant"}],
        [{**ASK, "content": "where is it"}],
        [{"role": "user", "content": "where is it?There."}],
        [ASK, SAID],
        [ASK, {**SAID, "role": "user"}],
        [ASK, CALLED],
        [ASK, _calls(_call("a", "f", '{"x":1,"y":["2"]}'))],
        [ASK, _calls(_call("a", "g", '{"x":1,"y":[2]}'))],
        [ASK, _calls(_call("a", "f", '{"x":12345678901234567890123}'))],
        [ASK, _calls(_call("a", "f", '{"x":12345678901234567890124}'))],
        [ASK, _calls(_call("a"), _call("b"))],
        [ASK, _calls(_call("a")), _calls(_call("b"))],
        [{"role": "user", "content": PARTS}],
        [{"role": "user", "content": PARTS[::-1]}],
        [{"role": "user", "content": PARTS[1:]}],
        [{"role": "user", "content": text_of(PARTS)}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:y"}}]}],
    ]
    assert len({fingerprint(history) for history in histories}) == len(histories)


@pytest.mark.parametrize("tenant", ["other", "x" * 500, "ü"])
def test_tenants_never_share_a_fingerprint(tenant: str) -> None:
    assert fingerprint([ASK], tenant) == fingerprint([ASK], tenant) != fingerprint([ASK])


def test_a_fingerprint_grows_and_its_copy_grows_on_its_own() -> None:
    said = Fingerprint("acme")
    said.add(ASK)
    copies = [said.copy(), said.copy()]
    for copy, answer in zip(copies, (_calls(_call("a")), _calls(_call("b", "g"))), strict=True):
        copy.add(answer)
        assert copy.digest() == fingerprint([ASK, answer], "acme")
    assert said.digest() == fingerprint([ASK], "acme")


@pytest.mark.parametrize("read", [earlier_calls, fingerprint, CallHistory.of])
def test_arguments_of_any_depth_and_size(read: Callable[[list[Json]], Any]) -> None:
    hard = ["[" * 100_000, "1" * 1_000_000, "[" + "0.1," * 300_000 + "1]", "\ud800", '"\\ud800"']
    read([_calls(*(_call(str(i), "f", text) for i, text in enumerate(hard)))])

"""What the history says of a proposed call: repeats, ages, failures, what was called since."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.gate.loops import MAX_CALLED_SINCE, MAX_FAILURES, NEAR_WINDOW, Loops, Seen
from entrogate.gate.normalise import Normaliser
from entrogate.gate.schema import Policy
from entrogate.wire.history import CallHistory, EarlierCall
from entrogate.wire.minted import minted_call

Json = dict[str, Any]
NOW = 1_795_000_000.0
REPLAY: Json = {"on_repeat": "replay"}
CIRCLE: Json = {"circle": {"rounds": 3}}


def rules(tools: Json, **fields: Any) -> Policy:
    return Policy.model_validate({"schema_version": 1, "name": "t", "tools": tools, **fields})


class Talk:
    """A message history that is written call by call."""

    def __init__(self) -> None:
        self.messages: list[Json] = [{"role": "user", "content": "go"}]
        self.failed: set[str] = set()
        self.ids: list[str] = []

    def call(self, *calls: tuple[str, Any], at: float = NOW, results: Any = "same") -> Talk:
        """One message with ``calls`` (name, arguments) made ``at``, and what they answered."""
        first = len(self.ids)
        ids = [minted_call(at, (first + n).to_bytes(6)) for n in range(len(calls))]
        self.ids += ids
        self.messages.append(
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": i, "function": {"name": name, "arguments": json.dumps(arguments)}}
                    for i, (name, arguments) in zip(ids, calls, strict=True)
                ],
            }
        )
        for call_id in ids if results is not None else ():
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": results})
        return self

    def say(self, role: str, content: str) -> Talk:
        self.messages.append({"role": role, "content": content})
        return self

    def history(self) -> CallHistory:
        return CallHistory.of(self.messages, self.failed)

    def look(self, policy: Policy, *calls: tuple[str, Any], now: float = NOW) -> tuple[Seen, ...]:
        written = [(name, json.dumps(arguments)) for name, arguments in calls]
        return Loops(policy, self.history()).look(written, now)


def test_near_repeats_and_whose_result_is_known() -> None:
    policy = rules({"find": {**REPLAY, "normalise": {"case": True}}})
    talk = (
        Talk().call(("find", {"q": "Rome"}), results="1").call(("find", {"q": "ROME"}), results="2")
    )
    talk.call(("other", {"q": "rome"})).call(("find", {"q": "rome"}), results=None)
    (seen,) = talk.look(policy, ("find", {"q": "rOME"}))
    assert (seen.repeats, seen.near_repeats) == (0, 3)
    assert seen.known is not None
    assert seen.known.result == "2"  # the latest that has a result
    (seen,) = talk.look(policy, ("find", {"q": "Rome"}))
    assert (seen.repeats, seen.near_repeats, seen.known and seen.known.result) == (1, 3, "2")
    (seen,) = talk.look(rules({"find": REPLAY}), ("find", {"q": "Rome"}))
    assert (seen.repeats, seen.near_repeats, seen.known and seen.known.result) == (1, 1, "1")
    (seen,) = talk.look(rules({"find": REPLAY}), ("find", {"q": "rOME"}))
    assert (seen.repeats, seen.near_repeats, seen.known) == (0, 0, None)


def test_the_age_of_a_result_stands_in_the_id_of_its_call() -> None:
    policy = rules({"find": REPLAY})
    talk = Talk().call(("find", 1), at=NOW - 100).call(("find", 1), at=NOW - 40)
    assert talk.look(policy, ("find", 1))[0].result_age_seconds == 40
    assert talk.look(policy, ("find", 1), now=NOW + 5)[0].result_age_seconds == 45


@pytest.mark.parametrize(
    ("change", "age"),
    [
        (lambda i: i, 40),
        (lambda i: "toolu_" + i, None),  # not ours
        (lambda i: "call_eg" + "a5" * 6 + i[-12:], None),  # in the year 7744
        (lambda i: minted_call(NOW + 1, b"123456"), None),  # not yet
        (lambda i: minted_call(NOW - 40, b"123456"), 40),  # forged, to no one's harm
        (lambda i: minted_call(NOW - 1, b"123456"), None),  # after the call that came next
        (lambda i: "call_eg" + "0" * 24, None),
    ],
)
def test_an_age_that_cannot_be_is_unknown(change: Any, age: float | None) -> None:
    talk = Talk().call(("find", 1), at=NOW - 40).call(("other", 2), at=NOW - 30)
    raw = json.dumps(talk.messages).replace(talk.ids[0], change(talk.ids[0]))
    talk.messages = json.loads(raw)
    assert talk.look(rules({"find": REPLAY}), ("find", 1))[0].result_age_seconds == age


def test_a_call_of_a_time_that_has_not_come_has_no_age() -> None:
    talk = Talk().call(("find", 1), at=NOW + 0.001)
    assert talk.look(rules({"find": REPLAY}), ("find", 1))[0].result_age_seconds is None
    assert talk.look(rules({"find": REPLAY}), ("find", 1), now=NOW + 1)[0].result_age_seconds


def test_calls_of_one_message_are_of_one_moment() -> None:
    """Their ids may be minted in any order: that is no clock that was set back."""
    talk = Talk().call(("find", 1), ("find", 2), at=NOW - 40)
    early = minted_call(NOW - 41, b"123456")
    talk.messages = json.loads(json.dumps(talk.messages).replace(talk.ids[1], early))
    assert talk.look(rules({"find": REPLAY}), ("find", 1))[0].result_age_seconds == 40


def test_a_replayed_result_stays_as_old_as_it_was() -> None:
    policy = rules({"find": REPLAY})
    history = Talk().call(("find", 1), at=NOW - 100).call(("other", 1), at=NOW - 90).history()
    known = history.calls[0]
    again = replace(known, call_id=minted_call(NOW, b"123456"), turn=9, dated_by=known.call_id)
    seen_by = Loops(policy, history)
    assert seen_by.look([("find", "1")], NOW)[0].result_age_seconds == 100
    history.add(again)
    (find, other) = seen_by.look([("find", "1"), ("other", "1")], NOW)
    assert (find.result_age_seconds, find.repeats) == (100, 2)
    assert other.known is not None
    assert Loops(rules({"other": REPLAY}), history).look([("other", "1")], NOW)[
        0
    ].result_age_seconds == pytest.approx(90)


def test_failures_by_their_text_and_by_their_mark() -> None:
    policy = rules({"find": REPLAY})
    assert Talk().call(("find", 1), results="Error: no").look(policy, ("find", 1))[0].result_failed
    talk = Talk().call(("find", 1), results="nothing there")
    assert not talk.look(policy, ("find", 1))[0].result_failed
    talk.failed = {talk.ids[0]}
    assert talk.look(policy, ("find", 1))[0].result_failed
    talk.call(("find", 1), results="there it is")  # the latest counts
    assert not talk.look(policy, ("find", 1))[0].result_failed


CLEARED = "[Old tool result content cleared]"


def test_a_result_that_the_client_cleared_is_none() -> None:
    policy = rules({"a": REPLAY, "b": {}}, **CIRCLE)
    talk = Talk().call(("a", 1), results=CLEARED)
    assert talk.look(policy, ("a", 1))[0].known is None
    for _ in range(2):
        talk.call(("b", 2), results=CLEARED).call(("a", 1), results=CLEARED)
    assert circle(policy, talk, ("b", 2)) == [0]  # nobody knows whether anything was new
    talk.call(("b", 2), results="late").call(("a", 1), results="news")
    (seen,) = talk.look(policy, ("a", 1))
    assert seen.known is not None
    assert seen.known.result == "news"


def test_near_duplicates_are_looked_for_among_the_latest_calls() -> None:
    policy = rules({"a": {**REPLAY, "normalise": {"case": True}}})
    talk = Talk().call(("a", "ROME"), results="near").call(("a", "Rome"), results="identical")
    for number in range(NEAR_WINDOW):
        talk.call(("a", number))
    (seen,) = talk.look(policy, ("a", "rome"))
    assert (seen.near_repeats, seen.known) == (0, None)
    (seen,) = talk.look(policy, ("a", "Rome"))
    assert (seen.near_repeats, seen.known and seen.known.result) == (1, "identical")


def test_what_was_called_since() -> None:
    policy = rules({"read": REPLAY})
    talk = Talk().call(("write", 0)).call(("read", 1), ("beside", 1)).call(("list", 1))
    talk.call(("read", 2)).call(("list", 1))
    (seen,) = talk.look(policy, ("read", 1))
    assert seen.called_since == ("beside", "list", "read")
    read, write = talk.look(policy, ("read", 1), ("write", 3))
    assert read.called_since == ("beside", "list", "read", "write")
    assert write.called_since == ()  # of a tool that the policy does not name
    talk.call(("read", 1))
    assert talk.look(policy, ("read", 1))[0].called_since == ()


def test_of_too_many_tools_those_that_matter_are_kept() -> None:
    policy = rules({"read": {**REPLAY, "invalidated_by": ["z9", "never"]}})
    talk = Talk().call(("read", 1))
    for number in range(200):
        talk.call((f"a{number}", 1))
    talk.call(("z9", 1))
    since = talk.look(policy, ("read", 1))[0].called_since
    assert len(since) == MAX_CALLED_SINCE
    assert "z9" in since
    assert list(since) == sorted(since)


def circle(policy: Policy, talk: Talk, *calls: tuple[str, Any]) -> list[int]:
    return [seen.circle_rounds for seen in talk.look(policy, *calls)]


def test_a_circle_of_calls_and_results() -> None:
    policy = rules({"a": {}, "b": {}}, **CIRCLE)
    talk = Talk()
    for _ in range(2):
        talk.call(("a", 1), results="x").call(("b", 2), results="y")
    talk.call(("a", 1), results="x")
    assert circle(policy, talk, ("b", 2)) == [3]
    assert circle(policy, talk, ("b", 3)) == [0]
    assert circle(policy, talk, ("a", 1)) == [0]
    assert circle(rules({"a": {}, "b": {}}), talk, ("b", 2)) == [0]  # no rule asks
    assert circle(rules({"c": {}}, **CIRCLE), talk, ("b", 2)) == [0]  # nor may it be gated
    assert circle(rules({"b": {"side_effects": True}}, **CIRCLE), talk, ("b", 2)) == [0]
    assert circle(policy, talk, ("b", 2), ("c", 1)) == [0, 0]


def test_a_circle_of_near_duplicates() -> None:
    policy = rules({"a": {"normalise": {"case": True, "ignore": ["at"]}}, "b": {}}, **CIRCLE)
    talk = Talk()
    for at, text in enumerate(("Rome", "ROME")):
        talk.call(("a", {"q": text, "at": at})).call(("b", 2))
    assert circle(policy, talk, ("a", {"q": "rome"})) == [2]
    assert circle(policy, talk, ("a", {"q": "roma"})) == [0]


def test_parallel_calls_go_in_a_circle_together() -> None:
    policy = rules({"a": {}, "b": {}}, **CIRCLE)
    talk = Talk().call(("a", 1), ("b", 2)).call(("a", 1), ("b", 2))
    assert circle(policy, talk, ("a", 1), ("b", 2)) == [3, 3]
    assert circle(policy, talk, ("c", 1), ("a", 1), ("b", 2)) == [0, 0, 0]


def test_a_new_question_begins_anew() -> None:
    policy = rules({"a": {}, "b": {}}, **CIRCLE)
    talk = Talk()
    for _ in range(3):
        talk.call(("a", 1)).call(("b", 2)).say("assistant", "It is.").say("user", "And now?")
    assert circle(policy, talk, ("a", 1)) == [0]
    reminded = Talk()
    for _ in range(3):  # a client that speaks between the calls asks nothing anew
        reminded.call(("a", 1)).say("user", "Mind the rules.").call(("b", 2))
    assert circle(policy, reminded, ("a", 1)) == [3]


@pytest.mark.parametrize(("changing", "rounds"), [(False, 3), (True, 0)])
def test_polling_beside_a_circle(changing: bool, rounds: int) -> None:
    """It counts for nothing itself, and where it shows a change there is progress."""
    policy = rules({"a": {}, "b": {}, "poll": {"polling": True}}, **CIRCLE)
    talk = Talk()
    for number in range(3):
        talk.call(("a", 1)).call(("poll", 1), results=f"{number if changing else 0} %")
        talk.call(("b", 2))
    del talk.messages[-2:]
    assert circle(policy, talk, ("b", 2)) == [rounds]
    assert circle(policy, talk, ("poll", 1)) == [0]
    assert circle(policy, talk, ("poll", 1), ("b", 2)) == [0, rounds]


def test_polling_alone_is_never_a_circle() -> None:
    policy = rules({"poll": {"polling": True}, "wait": {"polling": True}}, **CIRCLE)
    talk = Talk()
    for _ in range(20):
        talk.call(("poll", 1)).call(("wait", 5))
    assert circle(policy, talk, ("poll", 1)) == [0]
    plain = rules({"poll": {}, "wait": {}}, **CIRCLE)
    assert circle(plain, talk, ("poll", 1)) == [20]


def test_a_tool_with_side_effects_may_poll() -> None:
    tools: Json = {"a": {}, "submit": {"side_effects": True, "polling": True}}
    talk = Talk()
    for _ in range(3):
        talk.call(("a", 1)).call(("submit", 5))
    assert circle(rules(tools, **CIRCLE), talk, ("a", 1)) == [0]  # alone it is no circle
    tools["submit"] = {"side_effects": True}
    assert circle(rules(tools, **CIRCLE), talk, ("a", 1)) == [3]


def test_nothing_is_worked_out_that_no_rule_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    of = Normaliser.of

    def counted(self: Normaliser, key: bytes, given: Any) -> bytes:
        built.append(1)
        return of(self, key, given)

    monkeypatch.setattr(Normaliser, "of", counted)
    talk = Talk()
    for number in range(50):
        talk.call(("find", {"q": number}))
    seen_by = Loops(rules({"find": {}}), talk.history())
    seen_by.look([("find", '{"q":1}')] * 3, NOW)
    assert not built
    asked = rules({"find": {**REPLAY, "normalise": {"case": True}}}, **CIRCLE)
    seen_by = Loops(asked, talk.history())
    for _ in range(3):
        seen_by.look([("find", '{"q":1}')] * 3, NOW)
    assert len(built) == 50  # each call once, however often it is asked


@given(
    turns=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    times=st.lists(st.integers(-3, 3), min_size=6, max_size=6),
)
def test_age_and_what_was_called_since_by_going_through_all(
    turns: list[list[tuple[str, int]]], times: list[int]
) -> None:
    talk = Talk()
    for calls, at in zip(turns, times, strict=False):
        talk.call(*calls, at=NOW + at)
    flat = [(name, turn) for turn, calls in enumerate(turns) for name, _ in calls]
    name, arguments = turns[0][0]
    position = max(
        at for at, call in enumerate(c for calls in turns for c in calls) if call == turns[0][0]
    )
    turn = flat[position][1]
    (seen,) = talk.look(rules({"a": REPLAY, "b": REPLAY, "c": REPLAY}), (name, arguments))
    since = {each for at, (each, of) in enumerate(flat) if of >= turn and at != position}
    assert seen.called_since == tuple(sorted(since))
    likely = times[turn] <= 0 and all(at >= times[turn] for at in times[turn + 1 : len(turns)])
    assert seen.result_age_seconds == (pytest.approx(-times[turn]) if likely else None)


class Counted(list[EarlierCall]):
    """Counts what is read of it."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        self.read += len(found) if isinstance(index, slice) else 1
        return found


def test_many_calls_at_once_do_not_each_go_through_the_history() -> None:
    talk = Talk()
    n = 200
    for number in range(n):
        talk.call(("find", {"q": number}))
    history = talk.history()
    history.calls = Counted(history.calls)
    calls = [("find", json.dumps({"q": number})) for number in range(n)]
    seen = Loops(rules({"find": REPLAY}), history).look(calls, NOW)
    assert [each.repeats for each in seen] == [1] * n
    assert history.calls.read < 50 * n


def test_errors_in_a_row_are_counted() -> None:
    policy = rules({"find": {**REPLAY, "normalise": {"case": True}}, "other": REPLAY})
    talk = Talk()

    def failures(name: str = "find") -> int:
        return talk.look(policy, (name, {"q": "x"}))[0].failures

    assert failures() == 0
    for n, q in enumerate(["x", "X", "x"], start=1):
        talk.call(("find", {"q": q}), results="Error: busy")
        talk.call(("find", {"q": "y"}), results="fine")  # another call
        assert failures() == n
    talk.call(("find", {"q": "x"}), results=None)
    talk.call(("find", {"q": "x"}), results="[Old tool result content cleared]")
    assert failures() == 3
    talk.call(("find", {"q": "x"}), results="fine")
    assert failures() == 0
    for _ in range(12):
        talk.call(("other", {"q": "x"}), results="Error: busy")
    assert failures("other") == MAX_FAILURES
    talk.say("assistant", "It is busy.").say("user", "Once more.")
    assert failures("other") == 0
    assert talk.look(policy, ("other", {"q": "x"}))[0].result_failed

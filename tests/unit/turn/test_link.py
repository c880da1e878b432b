"""Linkage over a small table of heads: header, minted ids, history, new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from entrogate.errors import RequestError
from entrogate.turn.ids import mint_call
from entrogate.turn.link import Link, link, new_results
from entrogate.types import TurnHead
from entrogate.wire.history import CallHistory, fingerprint
from entrogate.wire.request import ChatRequest, parse_chat


def head(name: str, trajectory: str = "traj_1") -> TurnHead:
    return TurnHead(
        turn_id=name,
        trajectory_id=trajectory,
        turn_index=0,
        branch_index=0,
        n_messages=2,
        sequence_length=0,
        sequence_hash=b"",
        segment=None,
        capture_complete=True,
        has_calls=True,
    )


class Table:
    """Heads in memory, by each of the three ways to find one."""

    def __init__(self) -> None:
        self.calls: dict[str, TurnHead] = {}
        self.fingerprints: dict[bytes, TurnHead] = {}
        self.trajectories: dict[str, TurnHead] = {}

    async def heads_of_calls(self, call_ids: Sequence[str]) -> list[TurnHead]:
        return [self.calls[call_id] for call_id in call_ids if call_id in self.calls]

    async def head_of_fingerprint(self, fingerprint: bytes) -> TurnHead | None:
        return self.fingerprints.get(fingerprint)

    async def head_of_trajectory(self, trajectory_id: str) -> TurnHead | None:
        return self.trajectories.get(trajectory_id)

    async def is_erased(self, trajectory_id: str) -> bool:
        return False


USER = {"role": "user", "content": "hi"}


def _assistant(*call_ids: str, content: str | None = None) -> dict[str, Any]:
    calls = [{"id": i, "function": {"name": "f", "arguments": "{}"}} for i in call_ids]
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


def _result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "r " + call_id}


def _request(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"messages": list(messages), **fields}))


async def _link(table: Table, request: ChatRequest, headers: dict[str, str] | None = None) -> Link:
    return await link(table, request, headers or {}, CallHistory.of(request.messages))


async def test_a_first_request_begins_a_trajectory() -> None:
    found = await _link(Table(), _request(USER))
    assert found.parent is None
    assert found.trajectory_id.startswith("traj_")
    assert found.trajectory_id != (await _link(Table(), _request(USER))).trajectory_id


async def test_a_minted_call_id_names_the_turn() -> None:
    table, call = Table(), mint_call(1_800_000_000.0)
    table.calls[call] = head("turn_a")
    found = await _link(table, _request(USER, _assistant(call), _result(call)))
    assert found.parent == head("turn_a")
    assert found.trajectory_id == "traj_1"


async def test_the_latest_answer_wins_over_an_earlier_call() -> None:
    table, call = Table(), mint_call(1_800_000_000.0)
    table.calls[call] = head("turn_a")
    messages = [USER, _assistant(call), _result(call), _assistant(content="done")]
    table.fingerprints[fingerprint(messages)] = head("turn_b")
    found = await _link(table, _request(*messages, USER))
    assert found.parent == head("turn_b")


async def test_an_unknown_answer_falls_back_to_the_call() -> None:
    table, call = Table(), mint_call(1_800_000_000.0)
    table.calls[call] = head("turn_a")
    edited = _assistant(content="edited by the client")
    found = await _link(table, _request(USER, _assistant(call), _result(call), edited, USER))
    assert found.parent == head("turn_a")


async def test_ids_of_others_are_linked_by_what_was_said() -> None:
    table = Table()
    messages = [USER, _assistant("call_of_another_server")]
    table.fingerprints[fingerprint(messages)] = head("turn_a")
    found = await _link(table, _request(*messages, _result("call_of_another_server")))
    assert found.parent == head("turn_a")


async def test_the_header_wins_and_may_name_a_new_trajectory() -> None:
    table, call = Table(), mint_call(1_800_000_000.0)
    table.calls[call] = head("turn_a")
    table.trajectories["mine"] = head("turn_m", "mine")
    request = _request(USER, _assistant(call), _result(call))
    named = {"x-entrogate-trajectory-id": "mine"}
    assert (await _link(table, request, named)).parent == head("turn_m", "mine")
    fresh = await _link(table, request, {"x-entrogate-trajectory-id": "fresh"})
    assert (fresh.trajectory_id, fresh.parent) == ("fresh", None)
    same = await _link(table, request, {"x-entrogate-trajectory-id": "traj_1"})
    assert same.parent == head("turn_a")


async def test_metadata_names_trajectory_and_task() -> None:
    request = _request(USER, metadata={"trajectory_id": "t1", "task_id": "k1"})
    found = await _link(Table(), request)
    assert (found.trajectory_id, found.task_id) == ("t1", "k1")


@pytest.mark.parametrize("bad", [" ", "a b", "x" * 129, "ä", "a/b"])
async def test_ids_that_cannot_be_stored_are_refused(bad: str) -> None:
    with pytest.raises(RequestError):
        await _link(Table(), _request(USER), {"x-entrogate-trajectory-id": bad})


def test_only_results_of_the_last_calls_are_new() -> None:
    a, b, c = mint_call(1_800_000_000.0), mint_call(1_800_000_000.0), mint_call(1_800_000_000.0)
    messages = [USER, _assistant(a), _result(a), _assistant(b, c, "foreign"), _result(b)]
    messages.append(_result("foreign"))
    found = new_results(head("t"), CallHistory.of(messages))
    assert [(r.call_id, r.content) for r in found] == [(b, "r " + b)]
    assert new_results(None, CallHistory.of(messages)) == ()

"""Propensities are exact: chance decides once about each answer, knowing what it decides about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Start
from tests.integration.harness import (
    TOOLS,
    UNSURE,
    ask,
    calling,
    follow_up,
    message_of,
    policy_file,
)

REPLAY: dict[str, Any] = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None}}


async def test_chance_decides_anew_after_a_replay(start: Start, folder: Path) -> None:
    """So the propensities of a turn's decisions may be multiplied."""
    gateway = await start(policy=policy_file(folder, **REPLAY))
    body = ask(calling("Ada"), calling("Ada"), calling("Ada"), {"content": "It is Berlin."})
    first = await gateway.chat(body)
    second = await gateway.chat(follow_up(body, message_of(first), "Ada lives in Berlin"))
    turns = (await gateway.trajectory(second))["turns"]
    draws = [call["features"]["draw"] for turn in turns for call in turn["calls"]]
    assert len(draws) == len(set(draws)) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_exploring_knows_a_repeat_for_one_before_it_acts(
    start: Start, folder: Path, stream: bool
) -> None:
    """Where the alternative depends on the arguments, a call is not cut off before they are known.

    With epsilon 1 an uncertain call is suppressed, and a repeat, which would be replayed, allowed.
    """
    policy = {
        "mode": "explore",
        "explore": {"epsilon": 1.0},
        "defaults": {"threshold": 1.5, "on_repeat": "replay"},
        "tools": {"lookup": None},
    }
    gateway = await start(policy=policy_file(folder, **policy))
    history = [
        {"role": "assistant", "content": "", "tool_calls": [earlier_call("Ada")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Ada lives in Berlin"},
    ]
    for name, applied, repeats in (("Ada", "allow", 1), ("Bob", "suppress", 0)):
        body = ask(calling("Ada"), calling(name, confidence=UNSURE, masked="I see."))
        body |= {"tools": TOOLS[:1], "messages": [*body["messages"], *history]}
        if stream:
            answer, _ = await gateway.stream(body)
        else:
            answer = await gateway.chat(body)
        (turn,) = (await gateway.trajectory(answer))["turns"]
        (call,) = turn["calls"]
        assert call["features"]["repeats"] == repeats
        assert (call["decision"]["applied"], call["decision"]["propensity"]) == (applied, 1.0)


def earlier_call(name: str) -> dict[str, Any]:
    arguments = json.dumps({"entity": name})
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": "lookup", "arguments": arguments},
    }

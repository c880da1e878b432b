"""Scripted loops stop; polling, reading after writing and asking again after an error pass."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from entrogate.turn.clock import Clock
from entrogate.wire.minted import minted_at, minted_call
from tests.integration.agents import DOORS, FAILED, Agent
from tests.integration.conftest import Start
from tests.integration.harness import UNSURE, ask, calling, follow_up, policy_file

Json = dict[str, Any]
CIRCLE: Json = {"circle": {"rounds": 3}, "tools": {"lookup": None, "search": None}}
REPLAY: Json = {"defaults": {"on_repeat": "replay"}, "tools": {"lookup": None, "search": None}}
MASKED = "I answer without the tool."
every_door = pytest.mark.parametrize(
    ("door", "stream"), list(itertools.product(DOORS, [True, False])), ids=str
)


def same(name: str, entity: str) -> str:
    return f"{name} of {entity}"


def counting() -> Callable[[str, str], str]:
    numbers = itertools.count()
    return lambda name, entity: f"{name} of {entity}: {next(numbers)} %"


@every_door
async def test_a_loop_stops(start: Start, folder: Path, door: str, stream: bool) -> None:
    """A B A B A, and the B that would complete the third round is suppressed."""
    gateway = await start(policy=policy_file(folder, **CIRCLE))
    agent = Agent(gateway, door, same, stream)
    said = await agent.run(*[calling("Ada"), calling("Bo", name="search")] * 10)
    assert said == MASKED
    assert agent.calls == ["Ada", "Bo", "Ada", "Bo", "Ada"]
    assert agent.decided[-1] == ("Bo", "suppress", "circle")
    assert set(agent.reasons[:-1]) == {"no_rule"}
    features = agent.trajectory["turns"][-1]["calls"][0]["features"]
    assert features["circle_rounds"] == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_loop_stops_that_the_client_does_not_repeat(
    start: Start, folder: Path, stream: bool
) -> None:
    """Each request names the one before: the history is the stored one."""
    gateway = await start(policy=policy_file(folder, **CIRCLE))
    agent = Agent(gateway, "responses", same, stream, stored=True)
    said = await agent.run(*[calling("Ada"), calling("Bo", name="search")] * 10)
    assert said == MASKED
    assert agent.calls == ["Ada", "Bo", "Ada", "Bo", "Ada"]
    assert agent.reasons[-1] == "circle"


@every_door
async def test_calls_that_bring_something_new_go_on(
    start: Start, folder: Path, door: str, stream: bool
) -> None:
    gateway = await start(policy=policy_file(folder, **CIRCLE))
    agent = Agent(gateway, door, counting(), stream)
    said = await agent.run(*[calling("Ada"), calling("Bo", name="search")] * 6)
    assert said == "The answer is 42."
    assert agent.calls == ["Ada", "Bo"] * 6


@every_door
@pytest.mark.parametrize("tool", [same, counting()], ids=["unchanged", "changing"])
async def test_polling_passes(
    start: Start, folder: Path, door: str, stream: bool, tool: Callable[[str, str], str]
) -> None:
    """Also with the replay of repeats as a default, and however often it says the same."""
    tools: Json = {"lookup": {"polling": True}, "search": {"polling": True}}
    policy = {**CIRCLE, "defaults": {"on_repeat": "replay"}, "tools": tools}
    gateway = await start(policy=policy_file(folder, **policy))
    agent = Agent(gateway, door, tool, stream)
    said = await agent.run(*[calling("job"), calling("wait", name="search")] * 6)
    assert said == "The answer is 42."
    assert agent.calls == ["job", "wait"] * 6
    assert set(agent.reasons) == {"no_rule"}


async def test_near_identical_loops_stop(start: Start, folder: Path) -> None:
    rule: Json = {"normalise": {"case": True, "spaces": True}}
    policy = {**CIRCLE, "tools": {"lookup": rule, "search": rule}}
    gateway = await start(policy=policy_file(folder, **policy))
    agent = Agent(gateway, "chat", lambda name, _: name)
    spellings = ["Ada L", "ada l", "ADA  L", " Ada l "]
    steps = [s for each in spellings for s in (calling(each), calling(each, name="search"))]
    assert await agent.run(*steps) == MASKED
    assert agent.calls == ["Ada L", "Ada L", "ada l", "ada l", "ADA  L"]
    assert agent.reasons[-1] == "circle"


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_loop_is_seen_without_capture(start: Start, folder: Path, mode: str) -> None:
    """It needs no entropy; mode `observe` says what it would have done."""
    policy = {**CIRCLE, "defaults": {"threshold": 0.0}, "mode": mode}
    gateway = await start(policy=policy_file(folder, **policy))
    agent = Agent(gateway, "chat", same)
    steps = [calling(who, fault="no_logprobs") for who in ("Ada", "Bo")] * 3
    said = await agent.run(*steps)
    assert agent.reasons[:5] == ["capture_gap"] * 5
    assert agent.reasons[5] == "circle"
    assert said == (MASKED if mode == "enforce" else "The answer is 42.")
    assert len(agent.calls) == (5 if mode == "enforce" else 6)


@every_door
async def test_what_is_read_after_a_write_is_read_again(
    start: Start, folder: Path, door: str, stream: bool
) -> None:
    tools: Json = {
        "lookup": {"on_repeat": "replay", "invalidated_by": ["send_mail"]},
        "send_mail": {"side_effects": True},
    }
    gateway = await start(policy=policy_file(folder, tools=tools))
    written: list[str] = []

    def tool(name: str, entity: str) -> str:
        if name == "send_mail":
            written.append(entity)
            return "written"
        return f"{entity}: {len(written)}"

    agent = Agent(gateway, door, tool, stream)
    write = calling("Ada", name="send_mail")
    said = await agent.run(calling("Ada"), write, calling("Ada"), calling("Ada"))
    assert said == "The answer is 42."
    assert [(applied, reason) for _, applied, reason in agent.decided] == [
        ("allow", "no_rule"),
        ("allow", "side_effects"),
        ("allow", "result_invalidated"),
        ("replay", "repeat"),
    ]
    assert agent.calls == ["Ada"] * 3
    assert agent.trajectory["turns"][-1]["messages"][-1]["content"] == "Ada: 1"


@every_door
@pytest.mark.parametrize("error", ["Error: busy", '{"error": {"code": 503}}', f"{FAILED}busy"])
async def test_errors_are_asked_again(
    start: Start, folder: Path, door: str, stream: bool, error: str
) -> None:
    gateway = await start(policy=policy_file(folder, **REPLAY))
    marked = error.startswith(FAILED)
    results = iter([error, error, "Berlin"])
    agent = Agent(gateway, door, lambda *_: next(results), stream)
    said = await agent.run(*[calling("Ada")] * (2 if marked and door != "messages" else 4))
    assert said == "The answer is 42."
    if marked and door != "messages":  # of these only Messages can mark a result
        assert agent.reasons == ["no_rule", "repeat"]
    else:
        assert agent.reasons == ["no_rule", "result_failed", "result_failed", "repeat"]


@pytest.mark.parametrize("policy", ["balanced", "strict"])
@pytest.mark.parametrize(
    "tool",
    [same, lambda *_: "Error: busy", lambda *_: f"{FAILED}busy"],
    ids=["same", "error", "marked"],
)
async def test_one_call_for_ever_is_stopped_by_the_bundled_policies(
    start: Start, policy: str, tool: Callable[[str, str], str]
) -> None:
    """Whatever its result: replayed and then suppressed, suppressed, or after five errors."""
    gateway = await start(policy=policy)
    agent = Agent(gateway, "messages", tool)
    said = await agent.run(*[calling("Ada", confidence=UNSURE)] * 20)
    assert said == MASKED
    failing = tool is not same
    if policy == "strict":
        assert (len(agent.calls), agent.reasons[-1]) == (1, "repeat")
    elif failing:
        assert len(agent.calls) == 5
        assert agent.reasons == ["uncertain", *["result_failed"] * 4, "retry_limit"]
    else:
        assert len(agent.calls) == 1
        assert agent.reasons == ["uncertain", "repeat", "repeat", "replay_limit"]


async def test_the_mark_of_an_error_does_not_reach_the_model(start: Start, folder: Path) -> None:
    gateway = await start(policy=policy_file(folder, **REPLAY))
    agent = Agent(gateway, "messages", lambda *_: f"{FAILED}busy")
    await agent.run(calling("Ada"))
    (result,) = agent.trajectory["turns"][-1]["messages"]
    assert {k: v for k, v in result.items() if k != "tool_call_id"} == {
        "role": "tool",
        "content": "busy",
    }


async def test_a_near_duplicate_gets_the_earlier_result(start: Start, folder: Path) -> None:
    rule: Json = {"on_repeat": "replay", "normalise": {"case": True, "spaces": True}}
    gateway = await start(policy=policy_file(folder, tools={"lookup": rule}))
    agent = Agent(gateway, "chat", counting())
    await agent.run(calling("Ada"), calling(" ADA"), calling("Bo"))
    assert agent.calls == ["Ada", "Bo"]
    assert agent.decided[1] == (" ADA", "replay", "repeat")
    replayed = agent.trajectory["turns"][1]
    assert replayed["replayed"]
    features = replayed["calls"][0]["features"]
    assert (features["repeats"], features["near_repeats"]) == (0, 1)
    assert agent.trajectory["turns"][2]["messages"][-1]["content"] == "lookup of Ada: 0 %"


async def test_a_result_that_the_client_cleared_is_not_replayed(start: Start, folder: Path) -> None:
    gateway = await start(policy=policy_file(folder, **REPLAY))
    agent = Agent(gateway, "chat", lambda *_: "[Old tool result content cleared]")
    await agent.run(calling("Ada"), calling("Ada"))
    assert agent.reasons == ["no_rule", "result_missing"]


async def test_parallel_near_duplicates_are_replayed_together(start: Start, folder: Path) -> None:
    rule: Json = {"on_repeat": "replay", "normalise": {"case": True}}
    gateway = await start(policy=policy_file(folder, tools={"lookup": rule}))
    agent = Agent(gateway, "chat", counting())
    await agent.run(calling("Ada", "Bo"), calling("BO", "ada", "bo"))
    assert agent.calls == ["Ada", "Bo"]
    contents = [m["content"] for m in agent.trajectory["turns"][2]["messages"][-3:]]
    assert contents == ["lookup of Bo: 1 %", "lookup of Ada: 0 %", "lookup of Bo: 1 %"]


@dataclass(slots=True)
class Times:
    """What the gateway takes for the time; ``wall`` may be set like a clock."""

    wall: float = 1_795_000_000.0
    running: float = 0.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.running)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


FRESH: Json = {"tools": {"lookup": {"on_repeat": "replay", "replay_for_seconds": 60}}}


@every_door
@pytest.mark.parametrize(("waited", "jump"), [(59, 0), (61, 0), (100, -90), (10, 3600)])
async def test_a_result_is_replayed_for_its_time(
    start: Start, folder: Path, door: str, stream: bool, waited: float, jump: float
) -> None:
    """By the time that has passed: a clock set back makes nothing younger."""
    gateway = await start(policy=policy_file(folder, **FRESH))
    times = Times()
    gateway.gateway.clock = times.clock()

    def tool(name: str, entity: str) -> str:
        times.wait(waited)
        times.wall += jump
        return "Berlin"

    agent = Agent(gateway, door, tool, stream)
    await agent.run(calling("Ada"), calling("Ada"))
    fresh = waited + max(jump, 0) <= 60
    assert agent.reasons == ["no_rule", "repeat" if fresh else "result_stale"]
    assert len(agent.calls) == (1 if fresh else 2)
    second = next(t for t in agent.trajectory["turns"][1:] if t["calls"])
    age = second["calls"][0]["features"]["result_age_seconds"]
    assert age == pytest.approx(waited + max(jump, 0), abs=0.002)


async def test_a_replayed_result_is_as_old_as_it_was(start: Start, folder: Path) -> None:
    gateway = await start(policy=policy_file(folder, **FRESH))
    times = Times()
    gateway.gateway.clock = times.clock()

    def tool(name: str, entity: str) -> str:
        times.wait(40)
        return "Berlin"

    agent = Agent(gateway, "chat", tool)
    await agent.run(*[calling("Ada")] * 3)
    assert agent.reasons == ["no_rule", "repeat", "repeat"]
    ages = [t["calls"][0]["features"]["result_age_seconds"] for t in agent.trajectory["turns"][1:3]]
    assert ages == pytest.approx([40, 40], abs=0.002)


async def test_another_process_with_an_earlier_clock_replays_nothing(
    start: Start, folder: Path
) -> None:
    """As after a restart with the clock set back: the id is of a time that has not come."""
    gateway = await start(policy=policy_file(folder, **FRESH))
    times = Times()
    gateway.gateway.clock = times.clock()

    def tool(name: str, entity: str) -> str:
        times.wall -= 3600
        gateway.gateway.clock = times.clock()
        return "Berlin"

    agent = Agent(gateway, "chat", tool)
    await agent.run(calling("Ada"), calling("Ada"))
    assert agent.reasons == ["no_rule", "result_stale"]
    features = agent.trajectory["turns"][1]["calls"][0]["features"]
    assert features.get("result_age_seconds") is None


@pytest.mark.parametrize(
    ("remember", "reason"),
    [
        (lambda i: i.replace("call_eg", "toolu_"), "result_stale"),  # a client with its own ids
        (lambda i: "call_eg" + "0" * 24, "result_stale"),
        (lambda i: "call_eg" + "f" * 24, "result_stale"),  # in the future
        (lambda i: minted_call((minted_at(i) or 0) - 61, b"123456"), "result_stale"),
        (lambda i: minted_call((minted_at(i) or 0) + 61, b"123456"), "result_stale"),
        (lambda i: minted_call((minted_at(i) or 0) - 30, b"123456"), "repeat"),
    ],
)
async def test_ids_that_a_client_made_up(
    start: Start, folder: Path, remember: Callable[[str], str], reason: str
) -> None:
    """At most it is given again what it sent itself in the same request."""
    gateway = await start(policy=policy_file(folder, **FRESH))
    agent = Agent(gateway, "chat", same, remember=remember)
    await agent.run(calling("Ada"), calling("Ada"))
    assert agent.reasons == ["no_rule", reason]


async def test_stored_decisions_replay(start: Start, folder: Path) -> None:
    """What the rules saw is stored, so the same follows again years later."""
    policy: Json = {
        **CIRCLE,
        "defaults": {"on_repeat": "replay"},
        "tools": {
            "lookup": {"replay_for_seconds": 60, "normalise": {"case": True}},
            "search": {"invalidated_by": ["lookup"]},
        },
    }
    gateway = await start(policy=policy_file(folder, **policy))
    steps = [calling("Ada"), calling("Bo", name="search")] * 3
    for tool in (same, counting(), lambda *_: "Error: no"):
        await Agent(gateway, "chat", tool).run(*steps, calling("ADA"))
    from click.testing import CliRunner

    from entrogate.cli import command_line

    arguments = ["policy", "replay", "--store", f"sqlite:///{folder / 'store.db'}"]
    result = await asyncio.to_thread(CliRunner().invoke, command_line(), arguments)
    assert result.exit_code == 0, result.output
    assert "different: 0" in result.output


async def test_thousands_of_calls(start: Start, folder: Path) -> None:
    """However long the history and however much the policy asks of it."""
    rule: Json = {"on_repeat": "replay", "normalise": {"case": True}, "replay_for_seconds": 60}
    policy = {**CIRCLE, "tools": {"lookup": rule, "search": rule}}
    gateway = await start(policy=policy_file(folder, **policy))
    history: list[Json] = [{"role": "user", "content": "Go."}]
    for number in range(5000):
        call_id = minted_call(1_795_000_000 + number, number.to_bytes(6))
        function = {"name": ("lookup", "search")[number % 2], "arguments": '{"entity": "ADA"}'}
        call = {"id": call_id, "type": "function", "function": function}
        history.append({"role": "assistant", "tool_calls": [call]})
        history.append({"role": "tool", "tool_call_id": call_id, "content": "the same"})
    body = ask(calling("Ada", "Bo"), calling("Ada"))
    body = {**body, "messages": [*history, *body["messages"]]}
    new = await gateway.chat(body)
    circling = await gateway.chat(follow_up(body, {"role": "assistant", "content": "Well."}))
    for answer, reasons in ((new, {"no_rule", "result_stale"}), (circling, {"circle"})):
        turn = (await gateway.trajectory(answer))["turns"][-1]
        assert {c["decision"]["reason"] for c in turn["calls"]} == reasons
    assert turn["calls"][0]["features"]["circle_rounds"] == 256

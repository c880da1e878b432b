"""A fault in what the gateway adds to an answer never costs the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entrogate.entropy.capture import CaptureBuilder
from entrogate.observe.metrics import Metrics
from entrogate.store import Store
from entrogate.turn import record, state
from entrogate.turn.judge import Judge
from entrogate.turn.tokens import ChoiceTokens
from tests.integration.conftest import Start
from tests.integration.harness import (
    SURE,
    Running,
    ask,
    calling,
    eventually,
    follow_up,
    message_of,
    message_of_stream,
    policy_file,
)

PARTS: dict[str, tuple[Any, str]] = {
    "the bounds of the entropies": (CaptureBuilder, "build"),
    "the tokens of an event": (ChoiceTokens, "add_chat"),
    "the gap of a choice": (Judge, "gap"),
    "the spans": (Judge, "spans"),
    "the segment": (Judge, "segment"),
    "a decision": (Judge, "decide"),
    "an early decision": (Judge, "decide_early"),
    "whether a tool is gated": (Judge, "gates"),
    "a record": (record, "_record"),
    "a fingerprint": (record, "Fingerprint"),
    "the start of a prompt": (state, "starts_in_reasoning"),
    "the metrics of a turn": (Metrics, "record_turn"),
    "a commit": (Store, "commit_turns"),
}
STREAMED_ONLY = {"an early decision", "whether a tool is gated"}
CASES = [
    pytest.param(part, stream, id=f"{part}, {'streamed' if stream else 'whole'}")
    for part in PARTS
    for stream in (False, True)
    if stream or part not in STREAMED_ONLY
]


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("this part fails")


def content(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the ids that are minted for it."""
    calls = message.get("tool_calls") or ()
    said = {k: v for k, v in message.items() if k != "tool_calls" and v is not None}
    return {**said, "calls": [(c["function"]["name"], c["function"]["arguments"]) for c in calls]}


async def said(gateway: Running, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    if not stream:
        return content(message_of(await gateway.chat(body)))
    response, raw = await gateway.stream(body)
    assert response.status_code == 200
    return content(message_of_stream(raw))


@pytest.mark.parametrize(("part", "stream"), CASES)
async def test_each_part_may_raise(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, stream: bool
) -> None:
    # With every tool named, a stream is decided early, by the name of the call alone.
    named = ("lookup", "search", "send_mail") if part in STREAMED_ONLY else ("lookup",)
    gateway = await start(
        policy=policy_file(
            tmp_path, defaults={"threshold": 1.5}, tools={name: {} for name in named}
        )
    )
    body = ask(calling("Ada", confidence=SURE))
    wanted = await said(gateway, {**body, "tool_choice": "auto"}, stream=stream)
    assert wanted["calls"] == []  # without a fault the call is suppressed
    owner, name = PARTS[part]
    monkeypatch.setattr(owner, name, fail)
    got = await said(gateway, body, stream=stream)
    assert got["calls"] in ([], [("lookup", '{"entity": "Ada"}')])
    assert got.get("reasoning") == wanted.get("reasoning")
    monkeypatch.undo()
    assert await gateway.metric("entrogate_gate_faults_total") >= 1
    assert await said(gateway, body, stream=stream) == wanted


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_vocabulary_that_cannot_be_costs_the_labels_alone(
    start: Start, stream: bool
) -> None:
    """Bounds over 3 tokens contradict the log-probs of more: every answer was a 500."""
    gateway = await start(upstream={"vocab_size": 3})
    body = ask(calling("Ada"), stream=stream)
    response = await gateway.chat(body)
    assert response.status_code == 200
    (turn,) = (await gateway.trajectory(response))["turns"]
    assert turn["capture_gap"] == "gate_fault"  # the first part that needed them
    assert turn["segment"] is None
    assert turn["n_tokens"] > 0
    assert turn["calls"][0]["decision"]["applied"] == "allow"


async def test_a_change_that_cannot_be_told_costs_the_record_alone(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ask(calling("Ada"), {"content": "Rome."})
    first = await gateway.chat(body)
    monkeypatch.setattr(record, "entropy_change", fail)
    second = await gateway.chat(follow_up(body, message_of(first), "in Rome"))
    assert message_of(second)["content"].endswith("Rome.")
    assert await gateway.metric("entrogate_gate_faults_total") == 1


async def test_what_a_client_got_is_stored_when_it_goes_away(start: Start) -> None:
    gateway = await start()
    body = ask({"content": "One two three four five six", "fault": "stall", "at": 5}, stream=True)
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        got = b""
        async for data in response.aiter_raw():
            got += data
            if b" four" in got:
                break
    trajectory = response.headers["x-entrogate-trajectory-id"]
    found: dict[str, Any] = {}

    async def stored() -> bool:
        answer = await gateway.client.get(f"/v1/trajectories/{trajectory}")
        found.update(answer.json())
        return answer.status_code == 200

    await _until(stored)
    (turn,) = found["turns"]
    assert turn["error"] == "the client went away"
    assert turn["response"]["content"] == "One two three four"
    history = [*body["messages"], {"role": "assistant", "content": "One two three four"}]
    again = ask({"content": "More."}, text="And?")
    response = await gateway.chat({**again, "messages": [*history, *again["messages"]]})
    assert response.headers["x-entrogate-trajectory-id"] == trajectory


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_errors_of_the_upstream_are_counted_however_it_is_asked(
    gateway: Running, stream: bool
) -> None:
    name = "entrogate_upstream_errors_total"
    body = ask({"fault": "error", "status": 502}, stream=stream)
    for _ in range(10):
        assert (await gateway.chat(body)).status_code == 502
    assert await gateway.metric(name, kind="UpstreamStatus") == 10
    body = ask({"content": "Plain text, but cut.", "fault": "cut", "at": 3}, stream=stream)
    await gateway.chat(body)
    assert await gateway.metric(name, kind="UpstreamUnavailable") == 1


async def test_nothing_is_held_once_answers_are_over(start: Start, tmp_path: Path) -> None:
    """Leases, connections and captures come back however a turn ends."""
    gateway = await start(policy=policy_file(tmp_path, defaults={"threshold": 1.5}))
    for stream in (False, True):
        for step in (
            calling("Ada"),
            {"fault": "error", "status": 500},
            {"content": "Plain text, but cut.", "fault": "cut", "at": 3},
            {"content": "Plain text, but garbage.", "fault": "garbage", "at": 3},
        ):
            await gateway.chat(ask(step, stream=stream))
    await eventually(lambda: not gateway.gateway.background)
    assert sum(gateway.gateway.weights.running.values()) == 0


async def _until(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await check():
            await asyncio.sleep(0.02)


def test_every_part_has_its_place() -> None:
    """A part that was renamed would be tested no more."""
    assert all(hasattr(owner, name) for owner, name in PARTS.values())

"""A gateway and the promise of its policy: what it says, counts and refuses where it is void."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entrogate.gate.calibrated import calibration_hash
from entrogate.gate.policy import load_policy
from tests.integration.conftest import Start
from tests.integration.harness import Running, ask, calling, message_of, policy_file

RULES: dict[str, Any] = {
    "defaults": {"threshold": 9.0},  # every call is suppressed
    "tools": {"lookup": None},
}
BLOCK: dict[str, Any] = {
    "model": "scripted",
    "weights": "base",
    "n": 120,
    "max_loss": 0.05,
    "delta": 0.1,
    "date": "2026-01-01",
    "data": "00",
}


def calibrated(folder: Path, **block: Any) -> str:
    """A policy with a block that is true of its rules, unless a hash is given."""
    content = {**RULES, "calibration": BLOCK | {"hash": "none"} | block}
    path = policy_file(folder, **content)
    if "hash" not in block:
        content["calibration"]["hash"] = calibration_hash(load_policy(path))
        path = policy_file(folder, **content)
    return path


async def begin(start: Start, policy: str, *, required: bool = False, **gate: Any) -> Running:
    gate = {"policy": policy, "require_calibration": required} | gate
    return await start(policy=policy, gate=gate)


async def suppresses(gateway: Running) -> dict[str, Any]:
    """The stored decision on a call that the rules suppress."""
    answer = await gateway.chat(ask(calling("Ada", masked="It is Ada.")))
    assert answer.status_code == 200, answer.text
    decision = (await gateway.trajectory(answer))["turns"][0]["calls"][0]["decision"]
    assert ("tool_calls" in message_of(answer)) is (decision["applied"] == "allow")
    return decision


async def state(gateway: Running) -> str:
    (found,) = (await gateway.client.get("/ready")).json()["calibration"].values()
    assert await gateway.metric("entrogate_policy_calibration", policy="test", state=found) == 1
    return found


async def test_a_calibrated_policy_is_enforced_and_nothing_is_said(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await begin(start, calibrated(folder, estimator="topk"), required=True)

    decision = await suppresses(gateway)

    assert (decision["applied"], decision["mode"]) == ("suppress", "enforce")
    assert await state(gateway) == "valid"
    assert "policy.uncalibrated" not in caplog.text
    assert "entrogate_uncalibrated_turns_total{" not in (await gateway.client.get("/metrics")).text


BROKEN = [
    ({"model": "another"}, "other_model"),
    ({"weights": "lora-1"}, "other_weights"),
    ({"hash": "0" * 32}, "edited"),
    ({"estimator": "exact"}, "other_estimator"),  # log-probs are all there is here
]


@pytest.mark.parametrize(("block", "found"), BROKEN)
async def test_a_void_promise_is_told_counted_and_still_enforced(
    start: Start,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    block: dict[str, Any],
    found: str,
) -> None:
    gateway = await begin(start, calibrated(folder, **block))

    decisions = [await suppresses(gateway) for _ in range(2)]

    assert [each["applied"] for each in decisions] == ["suppress", "suppress"]
    assert await state(gateway) == found
    assert caplog.text.count("policy.uncalibrated") == 1  # once, not with every turn
    assert f"state={found}" in caplog.text
    turns = {"state": found, "applied": "as_set"}
    assert await gateway.metric("entrogate_uncalibrated_turns_total", **turns) == 2


@pytest.mark.parametrize(("block", "found"), BROKEN)
async def test_where_calibration_is_required_it_is_only_observed(
    start: Start,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    block: dict[str, Any],
    found: str,
) -> None:
    gateway = await begin(start, calibrated(folder, **block), required=True)

    decision = await suppresses(gateway)

    assert decision["action"] == "suppress"
    assert (decision["applied"], decision["mode"]) == ("allow", "observe")
    assert decision["propensity"] == 1.0
    assert "its turns are only observed (gate.require_calibration)" in caplog.text
    turns = {"state": found, "applied": "observe"}
    assert await gateway.metric("entrogate_uncalibrated_turns_total", **turns) == 1


async def test_thresholds_typed_by_hand_are_no_calibration(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await begin(start, policy_file(folder, **RULES), required=True)

    decision = await suppresses(gateway)

    assert (decision["applied"], decision["mode"]) == ("allow", "observe")
    assert await state(gateway) == "none"
    assert "nothing is promised for its thresholds" in caplog.text


async def test_a_client_cannot_ask_for_more_than_the_policy_promises(
    start: Start, folder: Path
) -> None:
    path = calibrated(folder, model="another")
    gateway = await begin(start, path, required=True, allow_mode_header=True)

    answer = await gateway.chat(
        ask(calling("Ada", masked="It is Ada.")), **{"x-entrogate-mode": "enforce"}
    )

    assert "tool_calls" in message_of(answer)


async def test_an_observing_gateway_without_a_calibration_is_quiet(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await begin(start, policy_file(folder, mode="observe", **RULES), required=True)

    await suppresses(gateway)

    assert await state(gateway) == "none"
    assert "policy.uncalibrated" not in caplog.text


async def test_a_streamed_answer_is_held_to_it_as_well(start: Start, folder: Path) -> None:
    gateway = await begin(start, calibrated(folder, model="another"), required=True)

    _, body = await gateway.stream(ask(calling("Ada", masked="It is Ada."), stream=True))

    assert b"tool_calls" in body
    assert json.loads(body.split(b"data: ")[1])["object"] == "chat.completion.chunk"

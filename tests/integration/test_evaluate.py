"""`entrogate policy evaluate` over what gateways recorded in a scripted world."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from entrogate.cli import command_line, run
from tests.integration.conftest import Start
from tests.integration.harness import (
    SURE,
    TOOLS,
    UNSURE,
    Running,
    ask,
    calling,
    follow_up,
    message_of,
    policy_file,
)

TASKS = 120
RULES: dict[str, Any] = {"defaults": {"threshold": 1.5}, "tools": {"lookup": None}}


async def record(gateway: Running, tasks: int = TASKS) -> None:
    """Tasks whose call is needed where the model is unsure, which it is every other time."""
    for number in range(tasks):
        confidence = SURE if number % 2 else UNSURE
        masked = "Berlin." if number % 2 else "Rome."
        body = ask(calling("Ada", confidence=confidence, masked=masked), {"content": "Berlin."})
        body["tools"] = TOOLS[:1]
        answer = await gateway.chat(body)
        message = message_of(answer)
        if message.get("tool_calls"):
            answer = await gateway.chat(follow_up(body, message, "Ada lives in Berlin"))
            message = message_of(answer)
        said = str(message["content"]).strip()
        told = await gateway.client.post(
            "/v1/feedback",
            json={
                "trajectory_id": answer.headers["x-entrogate-trajectory-id"],
                "score": float(said.endswith("Berlin.")),
            },
        )
        assert told.status_code == 200


async def evaluated(folder: Path, *options: str, **policy: Any) -> tuple[Result, dict[str, Any]]:
    """What the command says of a policy with these rules, on the terminal and as JSON."""
    wanted = folder / "wanted"
    wanted.mkdir(exist_ok=True)
    path, out = policy_file(wanted, **policy), folder / "report.json"
    arguments = ["policy", "evaluate", path, "--store", f"sqlite:///{folder / 'store.db'}"]
    arguments += ["--json", str(out), *options]
    result = await asyncio.to_thread(CliRunner().invoke, command_line(), arguments)
    return result, json.loads(out.read_text()) if out.is_file() else {}


async def test_an_explored_log_tells_what_others_would_do(start: Start, folder: Path) -> None:
    policy = policy_file(folder, **RULES, mode="explore", explore={"epsilon": 0.4})
    gateway = await start(policy=policy)
    gateway.gateway.random = random.Random(3)
    await record(gateway)
    for threshold, calls, outcome in ((9.0, 0.0, 0.5), (0.0, 1.0, 1.0), (1.5, 0.5, 1.0)):
        rules = {**RULES, "defaults": {"threshold": threshold}}
        result, report = await evaluated(folder, "--least", "20", **rules)
        assert result.exit_code == 0, result.output
        (model,) = report["models"]
        found = model["explored"]
        assert found["n"] == TASKS
        assert found["refused"] is None
        assert not found["warnings"]
        for metric, true in (("calls", calls), ("outcome", outcome)):
            for estimator in ("doubly_robust", "self_normalised"):
                own = found["estimates"][metric][estimator]
                assert own["lower"] - 1e-9 <= true <= own["upper"] + 1e-9, (threshold, metric)
        assert "effective sample size" in result.output
        assert "outcome" in result.output


async def test_ten_trajectories_say_nothing(start: Start, folder: Path) -> None:
    policy = policy_file(folder, **RULES, mode="explore", explore={"epsilon": 0.4})
    await record(await start(policy=policy), 10)
    result, report = await evaluated(folder, **RULES)
    assert result.exit_code == 3
    assert "the effective sample size of 10 explored trajectories is" in result.output
    assert "more trajectories are needed" in result.output
    assert report["models"][0]["explored"]["estimates"] == {}


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_log_of_neither_kind_says_what_to_record(
    start: Start, folder: Path, mode: str
) -> None:
    await record(await start(policy=policy_file(folder, **RULES, mode=mode)), 6)
    result, report = await evaluated(folder, **RULES)
    assert result.exit_code == 3
    assert "record some in mode explore, or with --shadow-share" in result.output
    assert report["models"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--confidence", "95"], "range"),
        (["--confidence", "nan"], "is not a finite number"),
        (["--least", "nan"], "is not a finite number"),
        (["--least", "0"], "range"),
        (["--mode", "fast"], "is not one of"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(command_line(), ["policy", "evaluate", "balanced", *arguments])
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize(("policy", "store"), [("nowhere.yaml", "x.db"), ("balanced", "none.db")])
def test_what_is_not_there_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], policy: str, store: str
) -> None:
    assert run(["policy", "evaluate", policy, "--store", f"sqlite:///{folder / store}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")

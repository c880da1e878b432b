"""The demo against a running gateway: the command, and what it reads of the trajectories."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from entrogate import cli
from entrogate.errors import UpstreamProtocol
from entrogate_lab.almanac.exhibits import collect
from tests.integration.conftest import Start
from tests.integration.harness import SURE, UNSURE, Running, ask, calling, follow_up, message_of


async def run_demo(*arguments: str) -> int:
    return await asyncio.to_thread(cli.run, ["demo", *arguments])


async def test_demo_on_a_running_gateway(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = await start(gate={"allow_mode_header": True})
    folder, file = tmp_path / "report", tmp_path / "out.json"
    arguments = ["--base-url", gateway.url, "--tasks", "6", "--report", str(folder)]
    assert await run_demo(*arguments, "--json", str(file)) == 0
    out = capsys.readouterr().out
    assert out.count("calls per task") == 1
    result = json.loads(file.read_text())
    assert {"model", "seed", "modes"} <= set(result)
    for mode in ("observe", "enforce"):
        assert result["modes"][mode]["tasks"] == 6
    report = json.loads((folder / "report.json").read_text())
    assert report["modes"] == result["modes"]
    assert report["policy"] == "observe"
    assert "<svg" in (folder / "index.html").read_text()


async def test_demo_where_clients_may_not_choose_the_mode(
    gateway: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["--report", str(tmp_path / "report")]
    assert await run_demo("--base-url", gateway.url, "--tasks", "1", *report) == 1
    error = capsys.readouterr().err
    assert "--allow-mode-header" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base-url", "http://127.0.0.1:1"], "no answer from http://127.0.0.1:1"),
        (["--policy", "blanced"], "blanced"),
        (["--json", "/no/such/folder/x.json"], "no folder /no/such/folder"),
        (["--base-url", "http://127.0.0.1:1", "--keep"], "--keep"),
    ],
)
async def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_demo(*arguments, "--report", str(tmp_path / "report")) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


async def test_a_folder_that_is_no_almanac_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["--report", str(tmp_path / "report")]
    assert await run_demo("--model", str(tmp_path), *report) == 1
    assert "almanac.json" in capsys.readouterr().err


def record(response: Any, **fields: Any) -> dict[str, Any]:
    return {
        "trajectory_id": response.headers["x-entrogate-trajectory-id"],
        "question": "Who?",
        "gold": "Ada",
        "answer": "Ada",
        "correct": True,
        "calls": [{"needless": True}, {"needless": False}],
        **fields,
    }


async def test_exhibits_of_recorded_trajectories(gateway: Running) -> None:
    steps = (
        calling("Ada", confidence=UNSURE),
        {"reasoning": "Now I know who it is for sure", "content": "Ada.", "confidence": SURE},
    )
    body = ask(*steps)
    first = await gateway.chat(body)
    last = await gateway.chat(follow_up(body, message_of(first), "a programmer"))
    plain = await gateway.chat(ask({"content": "No idea."}, text="What?"))
    records = [record(plain, calls=[]), record(last)]
    exhibits = await collect(gateway.url, records, api_key=None)

    assert len(exhibits.changes) == 1
    assert exhibits.changes[0].reduced is True
    assert exhibits.changes[0].delta < 0
    assert exhibits.changes[0].correct is True
    trace = exhibits.trace
    assert trace is not None
    assert trace.trajectory_id == records[1]["trajectory_id"]
    assert [len(turn.calls) for turn in trace.turns] == [1, 0]
    assert trace.turns[1].results == ("a programmer",)
    assert "Ada." in trace.turns[1].text
    for turn in trace.turns:
        assert len(turn.entropy_lower) == len(turn.entropy_upper) > 0
        assert turn.reasoning
        assert all(0 <= start < stop <= len(turn.entropy_upper) for start, stop in turn.reasoning)


async def test_a_missing_trajectory_is_a_clear_error(gateway: Running) -> None:
    missing = {"trajectory_id": "traj_none", "calls": [], "correct": False}
    with pytest.raises(UpstreamProtocol, match="answered 404"):
        await collect(gateway.url, [missing], api_key=None)

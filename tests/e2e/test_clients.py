"""The examples of docs/clients.md: each client runs an agent on the bundled model, unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from entrogate_lab.almanac.tasks import Task
from tests.e2e.conftest import Served, StartGateway, tasks

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "clients"
CLIENTS = [
    ("openai_chat", ()),
    ("openai_responses", ()),
    ("anthropic_messages", ()),
    ("langgraph_agent", ("openai",)),
    ("langgraph_agent", ("anthropic",)),
    ("pydantic_ai_agent", ()),
    ("openai_agents", ()),
]


@pytest.fixture
def estimator() -> str:
    return "exact"


def test_every_example_is_run() -> None:
    files = {path.stem for path in EXAMPLES.glob("*.py")} - {"almanac"}
    assert files == {name for name, _ in CLIENTS}
    page = (EXAMPLES.parents[1] / "clients.md").read_text(encoding="utf-8")
    assert [name for name in sorted(files) if f"examples/clients/{name}.py" not in page] == []


@pytest.mark.parametrize(
    ("name", "arguments"), CLIENTS, ids=["-".join([name, *rest]) for name, rest in CLIENTS]
)
def test_an_agent_runs_and_is_recorded(
    name: str, arguments: tuple[str, ...], start: StartGateway
) -> None:
    gateway = start()
    said = None
    for asked, task in enumerate(one_hop_tasks(6), start=1):
        command = [sys.executable, f"{EXAMPLES}/{name}.py", gateway.url, task.question, *arguments]
        said = subprocess.run(command, capture_output=True, text=True, timeout=120)
        runs = recorded(gateway)
        assert len(runs) == asked, "a question came apart, or two ran together"
        assert all(turn["capture_gap"] is None for turn in runs[0]["turns"])
        # A small model may go round in circles until its client gives up.
        if said.returncode == 0 and called(runs[0]):
            last = runs[0]["turns"][-1]["response"]
            assert said.stdout.strip() == (last["content"] or "").strip() != ""
            return
    assert said is not None
    pytest.fail(f"no answer after a call in six questions; the last one: {said.stderr[-1000:]}")


def one_hop_tasks(count: int) -> list[Task]:
    """Questions that one call answers, and that the model does not know by heart."""
    found = [task for task in tasks(400) if task.domain == "facts" and len(task.hops) == 1]
    return [task for task in found if task.oracle_calls == 1][:count]


def recorded(gateway: Served) -> list[dict[str, Any]]:
    """Every trajectory, the newest first."""
    with gateway.client() as client:
        listed = client.get("/v1/trajectories").json()["data"]
        return [client.get(f"/v1/trajectories/{each['id']}").json() for each in listed]


def called(run: dict[str, Any]) -> bool:
    """A call was made, its result came back, and the two were put together."""
    first, *later = run["turns"]
    if not later:
        return False
    calls = {call["id"] for call in first["calls"]}
    assert {result["call_id"] for result in later[0]["results"]} == calls != set()
    assert later[0]["parent_id"] == first["id"]
    return True

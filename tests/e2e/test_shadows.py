"""Shadows on a real vLLM: each observed call has both outcomes, and no client notices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from entrogate.turn.shadow import shadow_draw
from entrogate_lab.almanac.evaluate import evaluate
from tests.e2e.conftest import NAME, Served, StartGateway, chat_body, tasks
from tests.e2e.same import assert_same_answers
from tests.integration.harness import CHAT, same_bytes

ALWAYS = {
    "signal": {"min_tokens": 1},
    "defaults": {"threshold": 1e6},
    "tools": dict.fromkeys(("lookup", "calculator", "search", "read")),
}


def settled(gateway: Served, due: int) -> None:
    """Wait until so many shadows have come to something."""
    deadline = time.monotonic() + 120
    counted = 0.0
    with gateway.client() as client:
        while time.monotonic() < deadline:
            lines = client.get("/metrics").text.splitlines()
            found = [line for line in lines if line.startswith("entrogate_shadows_total{")]
            counted = sum(float(line.rpartition(" ")[2]) for line in found)
            if counted >= due:
                break
            time.sleep(0.1)
    assert counted == due


def trajectory(client: httpx.Client, id_: str) -> list[dict[str, Any]]:
    return client.get(f"/v1/trajectories/{id_}", params={"tokens": "true"}).json()["turns"]


def test_what_a_suppression_sends_and_the_same_bytes(start: StartGateway, tmp_path: Path) -> None:
    """Greedy: clients get the same answers with and without shadows, and a shadow says what the
    client gets where the call is suppressed."""

    def gateway(name: str, policy: Any = "observe", **settings: str) -> Served:
        return start(policy, store__url=f"sqlite:///{tmp_path / name}.db", **settings)

    plain, enforcing = gateway("plain"), gateway("enforcing", ALWAYS)
    shadowing = gateway("shadowing", shadow__share="1", shadow__max_tokens="128")
    found: list[tuple[str, str | None]] = []
    bodies = [chat_body(task, stream=number % 2 == 1) for number, task in enumerate(tasks(16))]
    without: list[bytes] = []
    with_shadows: list[bytes] = []
    with plain.client() as a, shadowing.client() as b, enforcing.client() as c:
        for body in bodies:
            told, same = a.post(CHAT, json=body), b.post(CHAT, json=body)
            assert told.status_code == 200, told.text
            without.append(same_bytes(told.content))
            with_shadows.append(same_bytes(same.content))
            suppressed = c.post(CHAT, json=body)
            (turn,) = trajectory(c, suppressed.headers["x-entrogate-trajectory-id"])
            if turn["calls"]:
                id_ = same.headers["x-entrogate-trajectory-id"]
                found.append((id_, turn["response"]["content"]))
        assert_same_answers(bodies, without, with_shadows)
        assert len(found) >= 8
        settled(shadowing, len(found))
        for id_, content in found:
            (turn,) = trajectory(b, id_)
            shadow = turn["shadow"]
            assert (shadow["content"].strip(), shadow["capture_gap"]) == (
                (content or "").strip(),
                None,
            )
            assert shadow["estimator"] == turn["estimator"]
            assert {len(values) for values in shadow["tokens"].values()} == {shadow["n_tokens"]}
            assert all(entropy is not None for entropy in shadow["tokens"]["entropy_upper"])


def test_sampled_trajectories_have_one_at_every_call(start: StartGateway) -> None:
    """Agents at work: all call turns of a sampled trajectory, scored by gold, and no others."""
    share = 0.6
    gateway = start(shadow__share=str(share), gate__allow_mode_header="true")
    result = asyncio.run(
        evaluate(
            f"{gateway.url}/v1",
            model=NAME,
            tasks=40,
            seed=5,
            modes=("observe",),
            concurrency=8,
            feedback=True,
        )
    )
    records = result["records"]["observe"]
    with gateway.client() as client:
        turns = {
            record["trajectory_id"]: trajectory(client, record["trajectory_id"])
            for record in records
        }
        calls = {
            id_: [turn["id"] for turn in found if turn["calls"]]
            for id_, found in turns.items()
            if shadow_draw(id_) < share
        }
        assert 12 <= len(calls) <= 36  # of 40, each with probability 0.6: P < 1e-4
        due = sum(map(len, calls.values()))
        assert due >= 20
        settled(gateway, due)
        for id_ in turns:
            for turn in trajectory(client, id_):
                shadow = turn["shadow"]
                assert (shadow is not None) is (turn["id"] in calls.get(id_, ()))
                if shadow is not None:
                    assert shadow["capture_gap"] is None
                    assert shadow["judged_by"] == "gold"
                    assert 0 <= shadow["score"] <= 1

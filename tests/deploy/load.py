"""Traffic in which everything happens that a dashboard shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entrogate.settings import Settings
from tests.integration.harness import (
    SURE,
    UNSURE,
    Running,
    ask,
    calling,
    follow_up,
    message_of,
    policy_file,
    settings,
)

POLICY: dict[str, Any] = {
    "defaults": {"threshold": 1.5, "on_repeat": "replay"},
    "tools": {"lookup": None},
    "audit": {"share": 0.01},
    "calibration": {
        "model": "another",
        "weights": "base",
        "n": 60,
        "max_loss": 0.05,
        "delta": 0.1,
        "date": "2026-01-01",
        "data": "00",
        "hash": "none",
    },
}


def watched(upstream_url: str, folder: Path) -> Settings:
    """A gateway whose policy can do everything but force, which needs the engine.

    Its calibration is void, and every trajectory has shadows.
    """
    policy = policy_file(folder, **POLICY)
    return settings(upstream_url, folder, policy=policy, shadow={"share": 1.0})


async def everything(gateway: Running) -> set[str]:
    """Calls that are allowed, suppressed and replayed, faults and feedback; what was decided."""
    decisions: set[str] = set()
    sure: dict[str, Any] = {"confidence": SURE}
    unsure: dict[str, Any] = {"confidence": UNSURE}
    suppressed = await gateway.chat(ask(calling("Ada", **sure)))
    decisions.add(suppressed.headers["x-entrogate-decision"])
    steps = (
        calling("Bo", **unsure),
        calling("Bo", **unsure),
        {"reasoning": "I have it now and it is clear to me", "content": "Berlin.", **sure},
    )
    body = ask(*steps)
    first = await gateway.chat(body)
    decisions.add(first.headers["x-entrogate-decision"])
    second = await gateway.chat(follow_up(body, message_of(first), "Bo lives in Berlin"))
    decisions.add(second.headers["x-entrogate-decision"])
    several = (
        calling("Cy", "Di", **sure, name="search"),
        {"reasoning": "Now I am not so sure of it any more", "content": "Rome.", **unsure},
    )
    body = ask(*several)
    first = await gateway.chat(body)
    await gateway.chat(follow_up(body, message_of(first), "nothing", "nothing"))
    await gateway.stream(ask({"content": "Plain text of some length."}))
    await gateway.stream(ask({"content": "It breaks in the middle of this.", "fault": "cut"}))
    await gateway.chat(ask({"content": "No.", "fault": "error"}))
    await gateway.chat(ask(calling("Ed", **sure, fault="no_logprobs")))
    trajectory = first.headers["x-entrogate-trajectory-id"]
    outcome = {"trajectory_id": trajectory, "answer": "Rome", "gold": "Rome"}
    answer = await gateway.client.post("/v1/feedback", json=outcome)
    assert answer.status_code == 200, answer.text
    return decisions

"""Policies of a running gateway: files written, orders given, and which of them decide."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.integration.harness import (
    UNSURE,
    Running,
    ask,
    calling,
)

ADMIN = "/admin/policies"
KEEPS = {"tools": {"lookup": None}}
DROPS = {"tools": {"lookup": {"max_calls": 0}}}
SOON = {"watch_policy": True, "watch_interval_seconds": 0.02}


def written(path: Path, name: str, **content: Any) -> str:
    """Write a policy as an editor does that is careful: beside it, then in its place."""
    base = {"schema_version": 1, "name": name, "mode": "enforce"}
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({**base, **content}))
    beside.replace(path)
    return str(path)


def text_of(name: str, **content: Any) -> str:
    return json.dumps({"schema_version": 1, "name": name, "mode": "enforce", **content})


async def arms(gateway: Running) -> dict[str, tuple[str, float, str]]:
    """Name, share and origin of each arm."""
    listed = (await gateway.client.get(ADMIN)).json()["data"]
    return {each["arm"]: (each["name"], each["share"], each["from"]) for each in listed}


async def put(gateway: Running, arm: str, **body: Any) -> dict[str, Any]:
    answer = await gateway.client.put(f"{ADMIN}/{arm}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def deciders(gateway: Running, count: int = 40) -> Counter[str]:
    """Which policies decided on the calls of ``count`` new trajectories."""
    body = ask(calling("Wyllo", confidence=UNSURE), {"content": "Rain."})
    answers = await asyncio.gather(*(gateway.chat(body) for _ in range(count)))
    found = [await gateway.trajectory(answer) for answer in answers]
    return Counter(each["turns"][0]["calls"][0]["decision"]["policy_name"] for each in found)

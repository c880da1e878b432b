"""Weights that a test publishes, and which of them answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.integration.harness import Running, ask

POLL = {"poll_interval_seconds": 0.05}


VERSION = "x-entrogate-weight-version"


STALLED = ask({"content": "one two three four", "fault": "stall"}, tools=False)


def lora(folder: Path, content: str, rank: int = 8) -> str:
    """A folder as peft writes it; the scripted upstream looks at the rank alone."""
    folder.mkdir()
    config = {"r": rank, "base_model_name_or_path": "scripted"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_text(content)
    return str(folder)


async def publish(gateway: Running, folder: str, **fields: Any) -> dict[str, Any]:
    answer = await gateway.client.post("/admin/weights", json={"folder": folder, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def share(gateway: Running, version: str, value: float) -> dict[str, Any]:
    answer = await gateway.client.post(f"/admin/weights/{version}/share", json={"share": value})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def roll_back(gateway: Running, version: str) -> dict[str, Any]:
    answer = await gateway.client.delete(f"/admin/weights/{version}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def table(gateway: Running) -> dict[str, dict[str, Any]]:
    answer = await gateway.client.get("/admin/weights")
    return {each["version"]: each for each in answer.json()["data"]}


async def version_of_new(gateway: Running, count: int = 20, **fields: Any) -> Counter[str]:
    """How often each version answered ``count`` new trajectories; every answer is checked."""
    body = ask({"content": "Hello."}, tools=False, **fields)
    answers = await asyncio.gather(*(gateway.chat(body) for _ in range(count)))
    assert {answer.status_code for answer in answers} == {200}
    return Counter(answer.headers[VERSION] for answer in answers)


async def busy(gateway: Running, version: str) -> None:
    async with asyncio.timeout(60):
        while (await table(gateway))[version]["in_flight"] == 0:
            await asyncio.sleep(0.01)


async def gone(gateway: Running, version: str) -> None:
    async with asyncio.timeout(60):
        while version in await table(gateway):
            await asyncio.sleep(0.02)

"""Stores full of trajectories with judged shadows, and `entrogate calibrate` over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from entrogate.cli import command_line
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.types import Capture, Estimator, Features, Mode, TurnRecord
from tests.unit.calibrate.world import policy
from tests.unit.store.made import calls_of, capture, shadow, turn

POLICY = """
schema_version: 1
name: mine
signal: {statistic: entropy_max}
defaults: {threshold: 1.5, on_repeat: replay}
tools: {search: , mail: {side_effects: true}}
"""


async def add(
    store: Store,
    name: str,
    *seen: Features,
    right_alone: bool = True,
    right: bool = True,
    feedback: bool = True,
    mode: Mode = Mode.OBSERVE,
    shadowed: bool = True,
    draft: Capture | None = None,
    **changed: Any,
) -> TurnRecord:
    """A trajectory with one turn of calls and an answer; its shadow is judged by the gold."""
    changed = {"weight_version": "base"} | changed
    if draft is not None and draft.estimator is Estimator.EXACT:
        changed = {"capture": capture(6, exact=True)} | changed
    called = turn(
        name, calls=calls_of(*seen, mode=mode, by=policy(POLICY)), finish_reason="tool_calls",
        **changed,
    )  # fmt: skip
    head = (await store.commit_turns([called]))[0]
    task = {"task_id": changed["task_id"]} if "task_id" in changed else {}
    answer = turn(name, parent=called, head=head, **task)
    await store.commit_turns([answer])
    if shadowed:
        said = "Paris" if right_alone else "Rome"
        await store.shadows.add(shadow(called, content=said, capture=draft or capture(7, seed=5)))
    if feedback:
        answer_given = "Paris" if right else "Rome"
        await store.add_feedback(trajectory_id=name, answer=answer_given, gold="Paris")
    return called


def filled(folder: Path, work: Callable[[Store], Coroutine[Any, Any, None]]) -> str:
    """A store on which ``work`` was done; its URL."""
    url = f"sqlite:///{folder / 'entrogate.db'}"

    async def run() -> None:
        store = Store.open(StoreSettings(url=url, durability="off"))
        await store.start()
        try:
            await work(store)
        finally:
            await store.aclose()

    asyncio.run(run())
    return url


def calibrate(folder: Path, url: str, *arguments: str) -> Result:
    base = ("--store", url, "--base-policy", str(folder / "mine.yaml"))
    plain = () if "--signals" in arguments else ("--signals", "entropy_max,entropy_mean,draft")
    return CliRunner().invoke(
        command_line(), ["calibrate", *base, *plain, *arguments], catch_exceptions=False
    )

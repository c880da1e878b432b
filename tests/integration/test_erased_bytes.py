"""What is erased leaves an SQLite store's files: nothing of it is found in their bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrogate.cli import command_line
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.erasure import ToErase
from tests.unit.store.made import allowed_call, shadow, turn


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=store_url))
    await opened.start()
    yield opened
    await opened.aclose()


def marks(name: str) -> list[str]:
    return [f"{name}-{where}-{'z' * 30}" for where in ("said", "tools", "note", "params", "shadow")]


async def fill(store: Store, n: int) -> list[str]:
    """Trajectories of all sizes, written in among one another, so that pages split and grow."""
    rng = random.Random(3)
    names = [f"person{number:04}" for number in range(n)]
    for name in names:
        said, tools, note, params, instead = marks(name)
        long = said * rng.choice((1, 5, 40, 300))
        record = turn(
            name,
            response=f'{{"role":"assistant","content":"{long}"}}'.encode(),
            tools=f'[{{"type":"{tools}"}}]'.encode(),
            params=f'{{"user":"{params}"}}'.encode(),
            calls=allowed_call(),
        )
        await store.commit_turns([record])
        await store.shadows.add(shadow(record, content=instead))
        await store.add_feedback(trajectory_id=name, score=0.5, comment=note)
    return names


def found(folder: Path, names: list[str]) -> list[str]:
    data = b"".join(file.read_bytes() for file in folder.glob("store.db*"))
    return [mark for name in names for mark in marks(name) if mark.encode() in data]


@pytest.mark.parametrize("by", ["gateway", "command"])
async def test_nothing_is_left_in_the_file(
    store: Store, store_url: str, tmp_path: Path, by: str
) -> None:
    names = await fill(store, 120)
    gone, kept = names[::3], [name for name in names if name not in names[::3]]
    assert len(found(tmp_path, names)) == 5 * len(names)
    if by == "gateway":
        for name in gone:
            await store.admin.erase(ToErase.trajectory(name), actor="key_a")
    else:
        command = ["trajectories", "erase", *gone, "--yes", "--store", store_url]
        done = await asyncio.to_thread(CliRunner().invoke, command_line(), command)
        assert done.exit_code == 0, done.output
    assert found(tmp_path, gone) == []
    assert len(found(tmp_path, kept)) == 5 * len(kept)

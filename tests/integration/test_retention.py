"""Old trajectories are deleted, whole, while gateways write; what is young or wanted stays."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import func, select

from entrogate.export.dataset import Dataset
from entrogate.export.exporter import export_settled
from entrogate.export.prune import prune
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.retention import BATCH
from entrogate.store.database import Database
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.settled import Settling
from entrogate.store.schema import metadata
from tests.integration.stored import trajectory_json
from tests.unit.store.made import allowed_call, change, shadow, turn

pytestmark = pytest.mark.both_stores

TOOLS = b'[{"type":"function","function":{"name":"%d"}}]'


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=store_url))
    await opened.start()
    yield opened
    await opened.aclose()


async def add(store: Store, name: str, *, score: float | None = None, **more: Any) -> None:
    """A trajectory of two turns with rows in most tables; of 2023 unless said otherwise."""
    first = turn(name, calls=allowed_call(), **more)
    (head,) = await store.commit_turns([first])
    await store.shadows.add(shadow(first))
    await store.commit_turns([turn(name, parent=first, head=head, change=change(True), **more)])
    if score is not None:
        await store.add_feedback(trajectory_id=name, score=score)


async def ids(store: Store) -> set[str]:
    return {item.id for item in (await store.list_trajectories(limit=1000)).items}


async def run(url: str, *arguments: str) -> Result:
    """In a thread of its own: the command starts an event loop, and this one is running."""
    command = [*arguments, "--store", url]
    return await asyncio.to_thread(CliRunner().invoke, prune, command, catch_exceptions=False)


def rows(url: str) -> dict[str, int]:
    database = Database(StoreSettings(url=url))
    with database.reading() as connection:
        counts = {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name != "audit"  # it only grows
        }
    database.close()
    return counts


async def test_whole_trajectories_go_with_all_that_hangs_on_them(
    store: Store, store_url: str
) -> None:
    await add(store, "young", created_at=time.time(), tools=TOOLS % 1)
    wanted = rows(store_url)
    for number in range(BATCH + 5):
        await add(store, f"old{number}", tools=TOOLS % (number % 3))
    assert len(await ids(store)) == BATCH + 6
    counted = await run(store_url, "--older-than", "30d", "--dry-run")
    assert counted.output == (
        f"would delete {BATCH + 5} trajectories with {2 * BATCH + 10} turns\n"
    )
    assert len(await ids(store)) == BATCH + 6
    done = await run(store_url, "--older-than", "30d")
    assert done.output == (
        f"deleted {BATCH + 5} trajectories with {2 * BATCH + 10} turns, 2 unused lists of tools\n"
    )
    assert rows(store_url) | {"commits": 0} == wanted | {"commits": 0}
    # The gateway thinks that the lists of tools are stored, for it stored them.
    await add(store, "again", created_at=time.time(), tools=TOOLS % 2)
    assert await ids(store) == {"young", "again"}


async def test_what_was_judged_lately_is_young(store: Store, store_url: str) -> None:
    await add(store, "judged", score=0.0)
    await add(store, "unjudged")
    await run(store_url, "--older-than", "30d")
    assert await ids(store) == {"judged"}


async def test_outcomes_can_be_kept(store: Store, store_url: str) -> None:
    await add(store, "judged", score=0.0)
    await add(store, "unjudged")
    await asyncio.sleep(0.1)
    age = "0.001m"
    await run(store_url, "--older-than", age, "--keep-outcomes")
    assert await ids(store) == {"judged"}
    await run(store_url, "--older-than", age)
    assert set(rows(store_url).values()) == {0}


async def test_what_is_not_exported_is_kept(store: Store, store_url: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await add(store, name)
    with Dataset.writing(str(tmp_path / "data")) as dataset:
        export_settled(
            store, dataset, settling=Settling(), wanted=TrajectoryFilter(complete=True), now=4e9
        )
    await add(store, "c")
    done = await run(store_url, "--older-than", "30d", "--exported-to", str(tmp_path / "data"))
    assert "deleted 2 trajectories" in done.output
    assert done.output.endswith("; kept 1 that are not exported yet\n")
    assert await ids(store) == {"c"}


async def test_writers_go_on_and_lose_nothing(store: Store, store_url: str) -> None:
    """A turn that comes to an old trajectory makes it young, or begins it anew."""
    names = [f"old{number:03}" for number in range(3 * BATCH)]
    roots = {name: turn(name) for name in names}
    heads = dict(zip(names, await store.commit_turns(list(roots.values())), strict=True))
    acknowledged: set[str] = set()
    pruning = asyncio.create_task(run(store_url, "--older-than", "30d"))
    for name in reversed(names):  # the other end first: they meet
        record = turn(name, parent=roots[name], head=heads[name], created_at=time.time())
        await store.commit_turns([record])
        acknowledged.add(record.turn_id)
    done = await pruning
    assert done.exit_code == 0
    found = [await trajectory_json(store, name) for name in names]
    stored = {each["id"] for trajectory in found for each in trajectory["turns"]}
    assert acknowledged <= stored
    for trajectory in found:  # deleted before its turn came, and then it says so; or whole
        missing = trajectory["incomplete_reason"] == "parent_missing"
        assert len(trajectory["turns"]) == (1 if missing else 2)


async def test_freed_space_can_be_given_back(store: Store, store_url: str, tmp_path: Path) -> None:
    await add(store, "old", new_messages=b'["' + b"x" * 3_000_000 + b'"]')
    await add(store, "young", created_at=time.time())
    done = await run(store_url, "--older-than", "30d", "--vacuum")
    if store_url.startswith("postgresql"):
        assert done.exit_code == 2
        assert "Postgres frees space by itself" in done.output
        return
    assert done.exit_code == 0
    await add(store, "after", created_at=time.time())
    assert await ids(store) == {"young", "after"}
    with sqlite3.connect(tmp_path / "store.db") as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    assert pages * 4096 < 1_000_000


@pytest.mark.parametrize("age", ["30", "d", "-1d", "0d", "1y", ""])
def test_an_age_that_is_none_is_refused(age: str) -> None:
    done = CliRunner().invoke(prune, ["--older-than", age, "--store", "sqlite:///none.db"])
    assert done.exit_code == 2
    assert "say for example 90m, 12h, 30d or 8w" in done.output

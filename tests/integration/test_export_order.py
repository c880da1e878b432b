"""An export follows the order of commits: clocks that jump or differ lose nothing."""

import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
from sqlalchemy import Engine, select, text

from entrogate.settings import StoreSettings
from entrogate.store import Store, TrajectoryFilter, postgres
from entrogate.store.database import Database
from entrogate.store.migrate import downgrade
from entrogate.store.read.settled import Settling
from entrogate.store.schema import commits, trajectories
from entrogate.store.write.turns import TurnTables
from tests.unit.store.made import turn

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

from entrogate.export.dataset import Dataset
from entrogate.export.exporter import Summary, export_settled

QUICK = Settling(quiet=1, patience=1)
HOURS = 2 * 3600.0


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = await started(store_url)
    yield opened
    await opened.aclose()


async def started(url: str) -> Store:
    opened = Store.open(StoreSettings(url=url))
    await opened.start()
    return opened


async def add(store: Store, *names: str, score: float | None = 1.0, **more: Any) -> None:
    for name in names:
        more = {"created_at": time.time(), **more}
        await store.commit_turns([turn(name, **more)])
        if score is not None:
            await store.add_feedback(trajectory_id=name, score=score)


def export(store: Store, folder: Path, settling: Settling = QUICK, **more: Any) -> Summary:
    wanted = TrajectoryFilter(complete=True, **more)
    with Dataset.writing(str(folder)) as dataset:
        return export_settled(store, dataset, settling=settling, wanted=wanted)


def ids(folder: Path) -> list[str]:
    parts = sorted(folder.glob("date=*/*.parquet"), key=lambda part: part.name)
    return [
        name for part in parts for name in pq.ParquetFile(part).read()["trajectory_id"].to_pylist()
    ]


def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of this process: on SQLite, commits are dated and ages told by it."""
    true_time, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() + offset[0])

    def shift(seconds: float) -> None:
        offset[0] = seconds

    return shift


async def test_after_the_clock_was_two_hours_ahead_everything_comes(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await started(store_url)
    shift = set_clock(monkeypatch)
    shift(HOURS)
    await add(store, "ahead1", "ahead2")
    time.sleep(1.1)
    export(store, tmp_path / "out")
    assert ids(tmp_path / "out") == ["ahead1", "ahead2"]
    shift(0)
    later = [f"right{number}" for number in range(10)]
    await add(store, *later)
    time.sleep(1.1)
    assert export(store, tmp_path / "out").trajectories == 10
    assert ids(tmp_path / "out") == ["ahead1", "ahead2", *later]
    await store.aclose()


async def test_what_was_dated_ahead_does_not_wait_for_the_clock(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its date is in the future: that it was there at an earlier look says how old it is."""
    store = await started(store_url)
    shift = set_clock(monkeypatch)
    shift(HOURS)
    await add(store, "ahead")
    shift(0)
    assert export(store, tmp_path / "out").trajectories == 0
    time.sleep(1.1)
    assert export(store, tmp_path / "out").trajectories == 1
    await store.aclose()


async def test_a_clock_that_was_behind_makes_nothing_final_too_soon(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await started(store_url)
    shift = set_clock(monkeypatch)
    await add(store, "before")
    slow = Settling(quiet=3, patience=3)
    export(store, tmp_path / "out", slow)  # looks, so that what comes is known to be younger
    shift(-HOURS)
    await add(store, "behind")
    shift(0)
    assert export(store, tmp_path / "out", slow).trajectories == 0
    time.sleep(3.1)
    assert export(store, tmp_path / "out", slow).trajectories == 2
    await store.aclose()


@pytest.mark.both_stores
async def test_another_filter_looks_at_everything_again(store: Store, tmp_path: Path) -> None:
    await add(store, "a1", score=None)
    await add(store, "b1")
    time.sleep(1.1)
    assert export(store, tmp_path / "out", has_outcome=True).trajectories == 1
    assert export(store, tmp_path / "out", has_outcome=True).trajectories == 0
    assert export(store, tmp_path / "out").trajectories == 1
    assert ids(tmp_path / "out") == ["b1", "a1"]


@pytest.mark.both_stores
async def test_a_change_after_the_export_is_counted_and_stays_out(
    store: Store, tmp_path: Path
) -> None:
    await add(store, "a1", "b1")
    time.sleep(1.1)
    export(store, tmp_path / "out")
    await store.add_feedback(trajectory_id="a1", score=0.0)
    time.sleep(1.1)
    summary = export(store, tmp_path / "out")
    assert (summary.trajectories, summary.late) == (0, 1)
    assert ids(tmp_path / "out") == ["a1", "b1"]


async def test_a_store_from_a_copy_is_looked_at_again(tmp_path: Path) -> None:
    """It gives the numbers after the copy a second time, to other trajectories."""
    file, copy, out = tmp_path / "store.db", tmp_path / "copy.db", tmp_path / "out"
    store = await started(f"sqlite:///{file}")
    await add(store, "a1")
    await store.aclose()
    shutil.copy(file, copy)
    store = await started(f"sqlite:///{file}")
    await add(store, *(f"lost{number}" for number in range(5)))
    time.sleep(1.1)
    assert export(store, out).trajectories == 6
    await store.aclose()
    restored = await started(f"sqlite:///{copy}")
    await add(restored, *(f"new{number}" for number in range(9)))
    time.sleep(1.1)
    assert export(restored, out).trajectories == 9
    assert len(ids(out)) == len(set(ids(out))) == 15
    await restored.aclose()


@pytest.mark.both_stores
async def test_a_data_set_of_an_earlier_version_goes_on(store: Store, tmp_path: Path) -> None:
    """Its manifest has a time where a commit is now; nothing comes twice, nothing is lost."""
    out = tmp_path / "out"
    await add(store, "a1", "b1")
    time.sleep(1.1)
    export(store, out)
    (entry,) = (out / "_manifest").iterdir()
    fields = orjson.loads(entry.read_bytes())
    for name in ("commit", "wanted", "sequences"):
        del fields[name]
    entry.write_bytes(orjson.dumps(fields | {"cursor": [time.time() + HOURS, "b1"]}))
    (out / "_sightings.json").unlink()
    await add(store, "c1")
    time.sleep(1.1)
    assert export(store, out).trajectories == 1
    assert ids(out) == ["a1", "b1", "c1"]


@pytest.mark.both_stores
async def test_an_older_store_is_numbered_in_the_order_of_its_changes(
    store_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = store_url
    if url.startswith("postgres"):
        url = request.getfixturevalue("empty_postgres")
    store = await started(url)
    for name, at in (("c", 300.0), ("a", 100.0), ("b", 200.0)):
        await add(store, name, created_at=at, duration_seconds=1.0, score=None)
    await add(store, "judged", created_at=50.0)  # the feedback is of now
    await store.aclose()
    database = Database(StoreSettings(url=url))
    with database.writer.begin() as connection:
        downgrade(connection, "0006", force=True)  # the audit goes
    database.close()
    store = await started(url)
    with store._database.reading() as connection:
        order = select(trajectories.c.id).order_by(trajectories.c.sequence)
        assert connection.execute(order).scalars().all() == ["a", "b", "c", "judged"]
    await add(store, "next", created_at=1.0)
    with store._database.reading() as connection:
        assert connection.execute(order).scalars().all()[-1] == "next"
    time.sleep(1.1)
    assert export(store, tmp_path / "out").trajectories == 5
    await store.aclose()


async def test_numbers_are_not_given_twice(tmp_path: Path) -> None:
    """The newest trajectory is deleted: the next one is still a later one."""
    store = await started(f"sqlite:///{tmp_path}/a.db")
    await add(store, "a1")
    with store._database.writer.begin() as connection:
        (first,) = connection.execute(select(trajectories.c.sequence)).scalars()
        connection.execute(text("DELETE FROM trajectories"))
        connection.execute(text("DELETE FROM commits"))
    await add(store, "b1")
    with store._database.reading() as connection:
        (second,) = connection.execute(select(trajectories.c.sequence)).scalars()
    assert second > first
    await store.aclose()


async def test_two_gateways_whose_clocks_differ(postgres_url: str, tmp_path: Path) -> None:
    """Hours apart, they write in turns while exports run: each trajectory comes once."""
    ahead, behind = await started(postgres_url), await started(postgres_url)
    out, names = tmp_path / "out", list[str]()
    for number in range(12):
        for gateway, offset in ((ahead, HOURS), (behind, -HOURS)):
            name = f"{number:02}{'ahead' if offset > 0 else 'behind'}"
            await add(gateway, name, created_at=time.time() + offset)
            names.append(name)
        if number % 4 == 3:
            time.sleep(1.1)
            export(ahead if number % 8 == 3 else behind, out)
    assert sorted(ids(out)) == sorted(names)
    await ahead.aclose()
    await behind.aclose()


def begun(engine: Engine, name: str) -> Any:
    """A transaction with a turn in it that is not committed yet."""
    connection = engine.connect()
    transaction = connection.begin()
    TurnTables(engine.dialect).write(connection, [turn(name, created_at=time.time(), tools=None)])
    return connection, transaction


async def test_a_lower_number_that_is_committed_later_is_not_passed_over(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export that cannot wait for it takes what is there, and does not go past it."""
    monkeypatch.setattr(postgres, "_HORIZON_PATIENCE_SECONDS", 0.2)
    store, other = await started(postgres_url), Database(StoreSettings(url=postgres_url))
    connection, transaction = begun(other.writer, "slow")
    await add(store, "quick")
    time.sleep(1.1)
    assert export(store, tmp_path / "out").trajectories == 1
    await add(store, "next")
    transaction.commit()
    connection.close()
    time.sleep(1.1)
    assert export(store, tmp_path / "out").trajectories == 2
    assert sorted(ids(tmp_path / "out")) == ["next", "quick", "slow"]
    await store.aclose()
    other.close()


async def test_an_export_waits_for_what_is_being_written(postgres_url: str, tmp_path: Path) -> None:
    store, other = await started(postgres_url), Database(StoreSettings(url=postgres_url))
    connection, transaction = begun(other.writer, "slow")
    await add(store, "quick")
    time.sleep(1.1)

    def finish() -> None:
        time.sleep(0.5)
        transaction.commit()
        connection.close()

    committing = Thread(target=finish)
    committing.start()
    summary = export(store, tmp_path / "out")
    committing.join()
    assert summary.trajectories == 2
    cursor = Dataset.reading(str(tmp_path / "out")).entries[-1].cursor
    assert cursor is not None
    with store._database.reading() as reading:
        assert cursor.sequence == reading.execute(select(commits.c.sequence)).scalars().all()[-1]
    await store.aclose()
    other.close()


def test_a_filter_has_a_name_of_its_own() -> None:
    from entrogate.export.exporter import _name_of

    every = TrajectoryFilter()
    assert _name_of(every) == _name_of(TrajectoryFilter())
    assert _name_of(every) != _name_of(replace(every, tenant=""))

"""What can go wrong under the store: each is one clear error, and nothing else is lost."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

import entrogate.store.write.writer as writer_module
from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import Store
from tests.integration.stored import trajectory_json
from tests.unit.store.made import turn

NOBODY = 65534


def settings(path: Path, **changed: object) -> StoreSettings:
    return StoreSettings.model_validate({"url": f"sqlite:///{path}"} | changed)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A database with one turn."""
    store = Store.open(settings(tmp_path / "store.db"))
    await store.start()
    await store.commit_turns([turn("first")])
    await store.aclose()
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    opened = Store.open(settings(path, queue_limit=3))
    await opened.start()
    yield opened
    await opened.aclose()


async def driver_of(store: Store) -> sqlite3.Connection:
    """The driver's connection that the writer writes on."""

    def driver(connection: Connection) -> sqlite3.Connection:
        found = connection.connection.driver_connection
        assert isinstance(found, sqlite3.Connection)
        return found

    return await store._write(driver)


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process holds the write lock until its input is closed."""
    script = textwrap.dedent(
        """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-S", "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.communicate()


async def ids(store: Store) -> set[str]:
    return {item.id for item in (await store.list_trajectories()).items}


@pytest.mark.parametrize("fault", ["full", "read-only"])
async def test_turns_wait_for_a_disk_that_takes_nothing(path: Path, fault: str) -> None:
    """Their callers are told soon, each is linked to, and all are stored in order afterwards."""
    store = Store.open(settings(path, patience_seconds=0.05))
    await store.start()
    driver = await driver_of(store)
    pages = driver.execute("PRAGMA page_count").fetchone()[0]
    driver.execute(f"PRAGMA max_page_count={pages}" if fault == "full" else "PRAGMA query_only=ON")
    first = turn("waits", new_messages=b'["' + b"x" * 100_000 + b'"]')
    (head,) = await store.commit_turns([first])
    assert await store.head_of_trajectory("waits") == head
    second = turn("waits", parent=first, head=head)
    await store.commit_turns([second])
    assert (await ids(store), store.deferred) == ({"first"}, 2)
    with pytest.raises(StoreError, match=r"full|readonly"):  # who asks for more is told
        await store.remember_policy("1", "p", "observe", "x" * 100_000)
    driver.execute("PRAGMA max_page_count=1000000" if fault == "full" else "PRAGMA query_only=OFF")
    async with asyncio.timeout(60):
        while store.deferred:  # nothing else has to come
            await asyncio.sleep(0.05)
    found = await trajectory_json(store, "waits")
    assert [each["id"] for each in found["turns"]] == [first.turn_id, second.turn_id]
    assert {each["branch_index"] for each in found["turns"]} == {0}
    assert found["complete"]
    await store.aclose()


async def test_a_short_lock_is_waited_for(store: Store, path: Path) -> None:
    with locked(path) as process:
        waiting = asyncio.ensure_future(store.commit_turns([turn("patient")]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert store.queue_depth == 1
        assert await ids(store) == {"first"}  # readers are not held up
        process.communicate()
        await waiting
    assert await ids(store) == {"first", "patient"}


async def test_jobs_that_wait_for_a_lock_wait_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patience for all of them, counted from when each came."""
    monkeypatch.setattr("entrogate.store.sqlite.BUSY_TIMEOUT_MS", 10)
    store = Store.open(settings(path, patience_seconds=2.0))
    await store.start()
    with locked(path):
        began = time.monotonic()
        waiting = [store.add_feedback(trajectory_id="first", score=1.0) for _ in range(12)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        took = time.monotonic() - began
    assert {str(each) for each in outcomes} == {"store: write failed: database is locked"}
    assert took < 12  # one after the other, they take 24
    given = await store.add_feedback(trajectory_id="first", score=1.0)
    assert given["score"] == 1.0
    await store.aclose()


async def test_turns_wait_in_order_behind_a_lock_that_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrogate.store.sqlite.BUSY_TIMEOUT_MS", 10)
    store = Store.open(settings(path, patience_seconds=0.1))
    await store.start()
    turns = [turn("t") for _ in range(5)]
    with locked(path):
        for each in turns:
            await store.commit_turns([each])
        assert store.deferred == 5
        with pytest.raises(StoreError, match="write failed: database is locked"):
            await store.remember_policy("1", "p", "observe", "")
    await store.aclose()  # writes them
    store = Store.open(settings(path))
    found = await trajectory_json(store, "t")
    assert [each["id"] for each in found["turns"]] == [each.turn_id for each in turns]
    await store.aclose()


async def test_a_bad_record_among_those_that_wait_is_lost_alone(path: Path) -> None:
    lost: list[tuple[str, int]] = []
    store = Store.open(
        settings(path, patience_seconds=0.05), on_loss=lambda error, n: lost.append((str(error), n))
    )
    await store.start()
    driver = await driver_of(store)
    driver.execute("PRAGMA query_only=ON")
    await store.commit_turns([turn("good")])
    await store.commit_turns([turn("bad", finish_reason=object())])
    await store.commit_turns([turn("better")])
    driver.execute("PRAGMA query_only=OFF")
    async with asyncio.timeout(60):
        while store.deferred:
            await asyncio.sleep(0.05)
    assert await ids(store) == {"first", "good", "better"}
    assert [n for _, n in lost] == [1]
    await store.aclose()


async def test_a_full_queue_refuses_at_once_and_loses_nothing_it_took(
    store: Store, path: Path
) -> None:
    with locked(path) as process:
        taken = [asyncio.ensure_future(store.commit_turns([turn(f"t{n}")])) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="3 writes are waiting, the queue is full"):
            await store.commit_turns([turn("refused")])
        process.communicate()
        await asyncio.gather(*taken)
    assert await ids(store) == {"first", "t0", "t1", "t2"}


async def test_the_queue_is_bounded_in_bytes_too(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "QUEUE_BYTES", 50_000)
    big = b'["' + b"x" * 60_000 + b'"]'
    with locked(path) as process:
        taken = asyncio.ensure_future(store.commit_turns([turn("big", new_messages=big)]))
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="the queue is full"):
            await store.commit_turns([turn("refused")])
        process.communicate()
        await taken
    await store.commit_turns([turn("after")])
    assert await ids(store) == {"first", "big", "after"}


@pytest.mark.parametrize("durability", ["normal", "off"])
async def test_a_loss_after_an_early_acknowledgement_is_told(path: Path, durability: str) -> None:
    lost: list[tuple[str, int]] = []
    store = Store.open(
        settings(path, durability=durability, patience_seconds=0.05),
        on_loss=lambda error, n: lost.append((str(error), n)),
    )
    await store.start()
    driver = await driver_of(store)
    driver.execute("PRAGMA query_only=ON")
    await store.commit_turns([turn("lost"), turn("lost")])
    await store.aclose()
    assert lost == [("store: closed before the database took what was waiting", 2)]


async def test_writing_before_the_start_is_refused(path: Path) -> None:
    store = Store.open(settings(path))
    with pytest.raises(StoreError, match="not started"):
        await store.commit_turns([turn("early")])
    await store.aclose()


async def test_a_read_only_file_is_refused_at_opening_and_can_be_read(path: Path) -> None:
    # As root every file is writable, so the test becomes nobody, in a folder nobody can enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(folder) / "store.db"
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o444)
        Path(folder).chmod(0o555)
        with (
            unprivileged(),
            pytest.raises(StoreError, match=r"^store: cannot open .*readonly|unable"),
        ):
            Store.open(settings(copy))
        Path(folder).chmod(0o755)


@contextmanager
def unprivileged() -> Iterator[None]:
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


async def test_a_newer_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match=r"schema revision 9999, which this version .* newer"):
        Store.open(settings(path))
    with pytest.raises(StoreError, match="schema revision 9999"):
        Store.open(settings(path), read_only=True)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match=r"holds other tables \(bookmarks\)"):
        Store.open(settings(tmp_path / "other.db"))
    with sqlite3.connect(tmp_path / "other.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    connection.close()
    assert tables == [("bookmarks",)]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_bytes(b"shopping list: " + b"bread " * 1000)
    with pytest.raises(StoreError, match="file is not a database"):
        Store.open(settings(tmp_path / "notes.db"))


async def test_a_damaged_page_is_an_error_and_not_a_crash(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with sqlite3.connect(path) as connection:
        root = "SELECT rootpage FROM sqlite_master WHERE name = 'turns'"
        page = connection.execute(root).fetchone()[0]
    connection.close()
    content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    store = Store.open(settings(path))
    await store.start()
    with pytest.raises(StoreError, match="malformed"):
        await store.get_trajectory("first")
    with pytest.raises(StoreError, match="malformed"):
        await store.commit_turns([turn("second")])
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("store.db", "is no URL"),
        ("sqlite+aiosqlite:///a.db", "not supported; use sqlite:///PATH"),
        ("mysql://someone:secret@localhost/a", "not supported"),
        ("postgresql+asyncpg://someone:secret@127.0.0.1:1/a", "127.0.0.1:1/a: connection"),
        ("postgresql://someone:secret@127.0.0.1:1", "names no database"),
        ("postgresql://someone:secret@127.0.0.1:one/a", "is no URL"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("sqlite:////nowhere/at/all/a.db", "the folder /nowhere/at/all does not exist"),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused_in_one_line(url: str, said: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(StoreSettings(url=url))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_reading_does_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(settings(tmp_path / "typo.db"), read_only=True)
    assert list(tmp_path.iterdir()) == []

"""What only a server can do to a store: hold a lock, be shared, refuse who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
from sqlalchemy import make_url, text

from entrogate.errors import StoreError
from entrogate.store import Store
from entrogate.store.database import Database
from entrogate.store.schema import REVISION
from entrogate.types import PublishedWeights, WeightsState
from tests.integration.postgres_store import opened, scalar, settings, store
from tests.integration.stored import trajectory_json
from tests.postgres import Server, connect
from tests.unit.store.made import allowed_call, turn

__all__ = ["store"]

WEIGHTS = PublishedWeights(
    model="m",
    version="0123456789ab",
    name="m-0123456789ab",
    folder="/loras/one",
    rank=8,
    share=1.0,
    promoted_at=None,
    state=WeightsState.SERVING,
    published_at=1.0,
    updated_at=1.0,
)


# -- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("postgresql", {}),
        ("postgresql+psycopg", {"sslmode": "disable"}),
        ("postgresql+asyncpg", {"ssl": "disable"}),
    ],
)
async def test_every_way_to_name_it_opens(
    postgres_url: str, driver: str, options: dict[str, str]
) -> None:
    url = make_url(postgres_url).set(drivername=driver).update_query_dict(options)
    async with opened(url.render_as_string(hide_password=False)) as store:
        await store.commit_turns([turn("t")])
        assert (await store.get_trajectory("t")).n_turns == 1


@pytest.mark.parametrize(
    ("durability", "waits_for"), [("full", "on"), ("normal", "local"), ("off", "off")]
)
def test_durability_is_what_a_commit_waits_for(
    postgres_url: str, durability: str, waits_for: str
) -> None:
    database = Database(settings(postgres_url, durability=durability))
    with database.writer.begin() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == waits_for
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "30s"
    database.close()


def test_a_refusal_does_not_tell_the_password(postgres_url: str) -> None:
    url = make_url(postgres_url).set(password="hunter2")
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        Store.open(settings(url.render_as_string(hide_password=False)))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_processes_that_start_together_migrate_once(empty_postgres: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for database in pool.map(Database, [settings(empty_postgres)] * 8):
            database.close()
    assert scalar(empty_postgres, "SELECT version_num FROM alembic_version") == REVISION


def test_a_newer_database_and_one_of_something_else_are_refused(empty_postgres: str) -> None:
    with pytest.raises(StoreError, match="has schema revision None, this version uses"):
        Store.open(settings(empty_postgres), read_only=True)
    with connect(empty_postgres) as connection:
        connection.execute("CREATE TABLE bookmarks (url text)")
    with pytest.raises(StoreError, match=r"holds other tables \(bookmarks\)"):
        Store.open(settings(empty_postgres))
    with connect(empty_postgres) as connection:
        connection.execute("DROP TABLE bookmarks")
    Database(settings(empty_postgres)).close()
    with connect(empty_postgres) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"revision 9999, which this version .* does not know"):
        Store.open(settings(empty_postgres))


def test_a_database_that_cannot_hold_every_text_is_refused(postgres_server: Server) -> None:
    url = postgres_server.create_database(encoding="LATIN1")
    try:
        with pytest.raises(StoreError, match="encoded in LATIN1; create it with UTF8"):
            Store.open(settings(url))
    finally:
        postgres_server.drop_database(url)


# -- what it holds --------------------------------------------------------------------------------


async def test_a_result_with_a_nul_is_kept(store: Store) -> None:
    """Postgres has no NUL in a text."""
    await store.commit_turns([turn("t", calls=allowed_call(), metadata={"run": "a\0b"})])
    await store.add_feedback(trajectory_id="t", score=1.0, comment="so\0so")
    found = await trajectory_json(store, "t")
    assert found["metadata"] == {"run": "a\0b"}  # JSON escapes it
    assert found["feedback"][0]["comment"] == "so\ufffdso"


# -- several gateways -----------------------------------------------------------------------------


async def test_the_latest_turn_is_the_latest_of_all_gateways(
    store: Store, postgres_url: str
) -> None:
    async with opened(postgres_url) as other:
        first = turn("t")
        (head,) = await store.commit_turns([first])
        second = turn("t", parent=first, head=head, fingerprint=first.fingerprint)
        await other.commit_turns([second])
        by_trajectory = await store.head_of_trajectory("t")
        by_fingerprint = await store.head_of_fingerprint(first.fingerprint)
        for found in (by_trajectory, by_fingerprint):
            assert found is not None
            assert found.turn_id == second.turn_id


async def test_gateways_that_cross_neither_collide_nor_deadlock(
    store: Store, postgres_url: str
) -> None:
    """The same new trajectories in opposite orders, outcomes in between: indices stay unique."""
    names = [f"t{number:02}" for number in range(40)]
    async with opened(postgres_url) as other:
        for _ in range(5):
            await asyncio.gather(
                store.commit_turns([turn(name) for name in names]),
                other.commit_turns([turn(name) for name in reversed(names)]),
            )
            await asyncio.gather(
                *(
                    each.add_feedback(trajectory_id=name, score=score)
                    for name in names[:10]
                    for each, score in ((store, 0.0), (other, 1.0))
                )
            )
    for name in names:
        found = await trajectory_json(store, name)
        assert [each["turn_index"] for each in found["turns"]] == list(range(10))
        assert sorted(each["branch_index"] for each in found["turns"]) == list(range(10))
        assert found["n_turns"] == found["n_branches"] == 10
    for name in names[:10]:
        found = await trajectory_json(store, name)
        assert found["outcome"] == found["feedback"][-1]["score"] == found["rewards"]["outcome"]


async def test_no_change_of_the_weights_is_lost(store: Store, postgres_url: str) -> None:
    """A change is made from what is stored, so two gateways must not make theirs at once."""

    def raise_rank(published: Sequence[PublishedWeights]) -> Sequence[PublishedWeights]:
        return [replace(each, rank=each.rank + 1) for each in published]

    await store.change_weights("m", lambda _: [WEIGHTS])
    async with opened(postgres_url) as other:
        changes = [
            each.change_weights("m", raise_rank) for _ in range(20) for each in (store, other)
        ]
        await asyncio.gather(*changes)
    (found,) = await store.weights("m")
    assert found.rank == WEIGHTS.rank + 40


async def test_a_deadlock_is_tried_again(store: Store, postgres_url: str) -> None:
    """Another program locks our rows the other way round; the server ends one of the two."""
    await store.commit_turns([turn("a"), turn("b")])
    with closing(connect(postgres_url)) as other:
        other.execute("SET deadlock_timeout = '10s'")  # so it is ours that is ended
        other.execute("BEGIN")
        other.execute("UPDATE trajectories SET mode = mode WHERE id = 'b'")
        waiting = asyncio.ensure_future(store.commit_turns([turn("a"), turn("b")]))
        while scalar(postgres_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == 0:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(other.execute, "UPDATE trajectories SET mode = mode WHERE id = 'a'")
        other.execute("COMMIT")
        await waiting
    assert (await store.get_trajectory("a")).n_turns == 2


def test_readers_cannot_write(postgres_url: str) -> None:
    database = Database(settings(postgres_url))
    with (
        pytest.raises(StoreError, match="read-only transaction"),
        database.reading() as connection,
    ):
        connection.execute(text("DELETE FROM trajectories"))
    database.close()

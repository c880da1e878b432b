"""What only a server can do to a store: go away, cut a commit, hold a lock, be shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from subprocess import CalledProcessError
from typing import Any

import pytest
from sqlalchemy import make_url, text

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.database import Database
from entrogate.store.schema import REVISION
from entrogate.types import PublishedWeights, WeightsState
from tests.integration.conftest import Start
from tests.integration.harness import ask, calling, follow_up, message_of
from tests.integration.stored import trajectory_json
from tests.postgres import Server, connect
from tests.unit.store.made import allowed_call, turn

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


def settings(url: str, **changed: object) -> StoreSettings:
    return StoreSettings.model_validate({"url": url} | changed)


@asynccontextmanager
async def opened(url: str, **changed: object) -> AsyncIterator[Store]:
    store = await asyncio.to_thread(Store.open, settings(url, **changed))
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture
def own_cluster(postgres_server: Server) -> Iterator[Server]:
    """The server where it is ours to stop; it runs again afterwards."""
    if postgres_server.cluster is None:
        pytest.skip("the server named in ENTROGATE_TEST_POSTGRES is not ours to stop")
    try:
        yield postgres_server
    finally:
        with suppress(CalledProcessError):  # it is down
            postgres_server.cluster.stop()
        postgres_server.cluster.start()


def scalar(url: str, query: str) -> Any:
    with connect(url) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


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


# -- a server that goes away ----------------------------------------------------------------------


async def test_a_restart_under_load_loses_nothing(own_cluster: Server, postgres_url: str) -> None:
    """The server crashes and comes back: every turn is stored once, and none is refused."""
    assert own_cluster.cluster is not None
    async with opened(postgres_url) as store:
        running = True
        acknowledged: list[str] = []

        async def agent(name: str) -> None:
            last, head = None, None
            while running:
                last = turn(name, parent=last, head=head)
                (head,) = await store.commit_turns([last])
                acknowledged.append(last.turn_id)

        agents = [asyncio.ensure_future(agent(f"agent{number}")) for number in range(8)]
        for _ in range(3):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(own_cluster.cluster.stop)
            await asyncio.to_thread(own_cluster.cluster.start)
        before = len(acknowledged)
        async with asyncio.timeout(20):
            while len(acknowledged) < before + 8:
                await asyncio.sleep(0.01)
        running = False
        await asyncio.gather(*agents)
        found = [await trajectory_json(store, f"agent{number}") for number in range(8)]
        stored = [each["id"] for trajectory in found for each in trajectory["turns"]]
        assert sorted(stored) == sorted(acknowledged)
        assert all(each["n_branches"] == 1 for each in found)


async def test_turns_wait_for_a_server_that_stays_away(
    own_cluster: Server, postgres_url: str
) -> None:
    """Callers are told after the patience, once; the turns are stored when it is back, in order."""
    assert own_cluster.cluster is not None
    async with opened(postgres_url, patience_seconds=1.0) as store:
        (head,) = await store.commit_turns([first := turn("t")])
        await asyncio.to_thread(own_cluster.cluster.stop)
        turns = [first]
        began = time.monotonic()
        for _ in range(5):  # nobody waits for the patience again
            turns.append(turn("t", parent=turns[-1], head=head))
            (head,) = await store.commit_turns([turns[-1]])
        assert time.monotonic() - began < 4.0
        with pytest.raises(StoreError, match="cannot read"):
            await store.get_trajectory("t")
        with pytest.raises(StoreError, match="write failed"):
            await store.add_feedback(trajectory_id="t", score=1.0)
        await asyncio.to_thread(own_cluster.cluster.start)
        async with asyncio.timeout(20):
            while store.deferred:
                await asyncio.sleep(0.05)
        found = await trajectory_json(store, "t")
        assert [each["id"] for each in found["turns"]] == [each.turn_id for each in turns]
        assert found["n_branches"] == 1


async def test_answers_go_on_without_the_store(
    own_cluster: Server, postgres_url: str, start: Start
) -> None:
    """Neither the lookup of the parent nor the commit stands in the way of an answer."""
    assert own_cluster.cluster is not None
    gateway = await start(store={"url": postgres_url, "patience_seconds": 0.2})
    body = ask(calling("Ada"), {"content": "Done."})
    message = message_of(await gateway.chat(body))
    await asyncio.to_thread(own_cluster.cluster.stop)
    body = follow_up(body, message, "a result")
    body["messages"] += [  # no id of ours names this turn, so the store has to be asked
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": "And?"},
    ]
    answer = await gateway.chat(body)
    assert answer.status_code == 200
    assert await gateway.metric("entrogate_store_errors_total", kind="link") == 1
    assert await gateway.metric("entrogate_store_deferred") == 1
    await asyncio.to_thread(own_cluster.cluster.start)
    async with asyncio.timeout(20):
        while await gateway.metric("entrogate_store_deferred"):
            await asyncio.sleep(0.05)
    assert (await gateway.trajectory(answer))["n_turns"] == 1
    assert await gateway.metric("entrogate_store_errors_total", kind="commit") == 0


class CuttingProxy:
    """Passes on to the server; ``cut`` breaks the next commit before or after the server has it."""

    def __init__(self, url: str) -> None:
        self.target = make_url(url)
        self.cut: str | None = None
        self.cuts = 0
        self._ways: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yields the URL through it."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield self.target.set(port=port).render_as_string(hide_password=False)
        finally:
            server.close()
            for way in self._ways:
                way.cancel()
            await asyncio.gather(*self._ways, return_exceptions=True)

    def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._ways.add(asyncio.ensure_future(self._serve(client, back)))

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_connection(self.target.host, self.target.port)
        answers = asyncio.ensure_future(_pass_on(server, back))
        self._ways.add(answers)
        try:
            while data := await client.read(65536):
                if self.cut is not None and b"COMMIT" in data:
                    when, self.cut = self.cut, None
                    self.cuts += 1
                    answers.cancel()
                    await asyncio.wait([answers])
                    if when == "after":
                        forth.write(data)
                        await server.read(65536)  # it is committed, and nobody hears of it
                    return
                forth.write(data)
        finally:
            forth.close()
            back.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_that_is_cut_is_stored_once(postgres_url: str, when: str) -> None:
    """Whether the server had it or not: the server is asked, and nothing is written twice."""
    proxy = CuttingProxy(postgres_url)
    async with proxy.running() as url, opened(url) as store:
        await store.commit_turns([turn("t")])
        proxy.cut = when
        (head,) = await store.commit_turns([turn("t")])
        assert head.turn_index == 1
        proxy.cut = when
        await store.add_feedback(trajectory_id="t", score=1.0)
        assert proxy.cuts == 2
        found = await trajectory_json(store, "t")
        assert [each["turn_index"] for each in found["turns"]] == [0, 1]
        assert len(found["feedback"]) == 1


async def test_a_commit_of_unknown_fate_is_not_written_twice(postgres_url: str) -> None:
    """It went through, the server was away for longer than the patience, and is asked later."""
    proxy = CuttingProxy(postgres_url)
    async with proxy.running() as url, opened(url, patience_seconds=0.0) as store:
        await store.commit_turns([turn("t")])
        proxy.cut = "after"
        await store.commit_turns([turn("t")])
        assert store.deferred == 1
        async with asyncio.timeout(20):
            while store.deferred:
                await asyncio.sleep(0.05)
        found = await trajectory_json(store, "t")
        assert [each["turn_index"] for each in found["turns"]] == [0, 1]


async def test_a_lost_reading_connection_is_replaced(store: Store, postgres_url: str) -> None:
    await store.commit_turns([turn("t")])
    assert (await store.get_trajectory("t")).n_turns == 1
    with connect(postgres_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert (await store.get_trajectory("t")).n_turns == 1
    assert await store.head_of_call("unknown") is None


def test_readers_cannot_write(postgres_url: str) -> None:
    database = Database(settings(postgres_url))
    with (
        pytest.raises(StoreError, match="read-only transaction"),
        database.reading() as connection,
    ):
        connection.execute(text("DELETE FROM trajectories"))
    database.close()

"""Postgres restarts, stays away or is cut off during a commit: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from subprocess import CalledProcessError

import pytest
from sqlalchemy import make_url

from entrogate.errors import StoreError
from entrogate.store import Store
from tests.integration.conftest import Start
from tests.integration.harness import ask, calling, follow_up, message_of
from tests.integration.postgres_store import opened, store
from tests.integration.stored import trajectory_json
from tests.postgres import Server, connect
from tests.unit.store.made import turn

__all__ = ["store"]


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
        async with asyncio.timeout(60):
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
    async with opened(postgres_url, patience_seconds=2.0) as store:
        (head,) = await store.commit_turns([first := turn("t")])
        await asyncio.to_thread(own_cluster.cluster.stop)
        turns = [first]
        began = time.monotonic()
        for _ in range(5):  # nobody waits for the patience again
            turns.append(turn("t", parent=turns[-1], head=head))
            (head,) = await store.commit_turns([turns[-1]])
        assert time.monotonic() - began < 9.0  # each for itself, they take 10
        with pytest.raises(StoreError, match="cannot read"):
            await store.get_trajectory("t")
        with pytest.raises(StoreError, match="write failed"):
            await store.add_feedback(trajectory_id="t", score=1.0)
        await asyncio.to_thread(own_cluster.cluster.start)
        async with asyncio.timeout(60):
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
    async with asyncio.timeout(60):
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


async def test_a_commit_of_unknown_fate_is_not_written_twice(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It went through, the server was away for longer than the patience, and is asked later."""
    proxy = CuttingProxy(postgres_url)
    async with proxy.running() as url, opened(url, patience_seconds=0.0) as store:
        await store.commit_turns([turn("t")])
        proxy.cut = "after"
        await store.commit_turns([turn("t")])
        assert any("store.away" in said for said in caplog.messages)  # deferred
        async with asyncio.timeout(60):
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

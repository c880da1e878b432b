"""What a gateway knows of keys, and counts against their limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.requests import Request

from entrogate.access import Key, Scope, digest_of, new_secret
from entrogate.errors import StoreError, UnknownRecord
from entrogate.serve.access import Caller, caller_of
from entrogate.serve.keyring import Keyring, Refused
from entrogate.settings import AccessSettings, StoreSettings
from entrogate.store import Store
from entrogate.store.admin.keys import add_key, read_keys
from entrogate.store.database import Database
from entrogate.store.schema import api_keys

SECRET = new_secret()
KEY = Key(
    id="key_1",
    name="one",
    digest=digest_of(SECRET),
    shown=SECRET[:9],
    tenant="acme",
    scopes=frozenset({Scope.INFER, Scope.READ}),
)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))


@pytest.fixture
async def keyring(database: Database, tmp_path: Path) -> AsyncIterator[Keyring]:
    store = Store.open(StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    await store.start()
    yield Keyring(AccessSettings(refresh_seconds=0.01), store)
    await store.aclose()
    database.close()


def stored(database: Database, key: Key) -> None:
    with database.writer.begin() as connection:
        add_key(connection, key)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.01)


def test_the_bucket_of_a_minute(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as it holds at once, then one each time that one has come back."""
    now = 1000.0
    monkeypatch.setattr("entrogate.serve.keyring.time.monotonic", lambda: now)
    key = replace(KEY, requests_per_minute=30)  # one comes back every 2 s

    def passed() -> int:
        for made in range(100):
            try:
                with keyring.counted(key):
                    pass
            except Refused as error:
                refusals.append(error)
                return made
        raise AssertionError("nothing was refused")

    refusals: list[Refused] = []
    assert passed() == 30
    now += 1.5
    assert passed() == 0
    now += 0.5
    assert passed() == 1
    now += 7.0
    assert passed() == 3
    now += 3601.0
    assert passed() == 30  # what is not used is not saved up
    assert {(each.status, each.code) for each in refusals} == {(429, "rate_limit_exceeded")}
    waits = [each.retry_after_seconds for each in refusals]
    assert waits == pytest.approx([2.0, 0.5, 2.0, 1.0, 2.0])


def test_requests_at_a_time_cost_no_token_when_refused(keyring: Keyring) -> None:
    key = replace(KEY, concurrency=1, requests_per_minute=2)
    with keyring.counted(key), pytest.raises(Refused, match="at a time"), keyring.counted(key):
        pass
    with keyring.counted(key):
        pass
    with pytest.raises(Refused, match="per minute"), keyring.counted(key):
        pass


def test_a_request_that_fails_is_over(keyring: Keyring) -> None:
    key = replace(KEY, concurrency=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), keyring.counted(key):
            raise ZeroDivisionError


async def test_closed_once_and_for_all(keyring: Keyring, database: Database) -> None:
    """Also when the table is emptied: a restored backup must not open a running gateway."""
    await keyring.refresh()
    assert not keyring.closed
    stored(database, KEY)
    await keyring.refresh()
    assert keyring.find(SECRET).id == KEY.id
    with database.writer.begin() as connection:
        connection.execute(api_keys.delete())
    await keyring.refresh()
    assert keyring.closed
    with pytest.raises(Refused):
        keyring.find(SECRET)


async def test_a_scope_of_a_later_version_gives_no_rights(
    keyring: Keyring, database: Database
) -> None:
    stored(database, KEY)
    with database.writer.begin() as connection:
        connection.execute(api_keys.update().values(scopes="infer paint"))
    await keyring.refresh()
    assert keyring.find(SECRET).scopes == {Scope.INFER}


async def test_what_goes_wrong_once_does_not_stop_the_watch(
    database: Database, tmp_path: Path
) -> None:
    """Else a key that is revoked later would be good for ever."""

    class Stumbling(Store):
        stumbles = 0

        async def keys(self) -> list[Key]:
            if self.stumbles:
                self.stumbles -= 1
                raise ValueError("a row that nobody foresaw")
            return await super().keys()

    stored(database, KEY)
    store = Stumbling(database, StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    await store.start()
    keyring = Keyring(AccessSettings(refresh_seconds=0.01), store)
    async with keyring.running():
        store.stumbles = 2
        await until(lambda: store.stumbles == 0)
        with database.reader.begin() as connection:  # the writer is the store's
            assert read_keys(connection)[0].revoked_at is None
        await store._write(lambda c: c.execute(api_keys.update().values(revoked_at=time.time())))
        await until(lambda: not _is_known(keyring))
    await store.aclose()


def _is_known(keyring: Keyring) -> bool:
    try:
        keyring.find(SECRET)
    except Refused:
        return False
    return True


async def test_the_last_use_is_kept(keyring: Keyring, database: Database) -> None:
    stored(database, KEY)

    def last_use() -> float | None:
        return database.read(read_keys)[0].last_used_at

    begun = time.time()
    async with keyring.running():
        assert last_use() is None
        keyring.find(SECRET)
        await until(lambda: last_use() is not None)
        first = last_use()
        assert first is not None
        assert begun <= first <= time.time()
        for _ in range(20):  # within the minute nothing is written
            keyring.find(SECRET)
            await asyncio.sleep(0.01)
        assert last_use() == first
        await keyring.store.note_key_uses({KEY.id: first - 5.0})
        assert last_use() == first  # another gateway's earlier use
        await keyring.store.note_key_uses({"key_none": first})


async def test_a_use_that_cannot_be_stored_is_stored_later(
    keyring: Keyring, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(database, KEY)
    failed: list[bool] = []
    real = keyring.store.note_key_uses

    async def fails_once(news: Mapping[str, float]) -> None:
        if not failed:
            failed.append(True)
            raise StoreError("away")
        await real(news)

    monkeypatch.setattr(keyring.store, "note_key_uses", fails_once)
    async with keyring.running():
        keyring.find(SECRET)
        await until(lambda: database.read(read_keys)[0].last_used_at is not None)
    assert failed


def test_an_unknown_key_is_not_revoked(database: Database) -> None:
    from entrogate.store.admin.keys import revoke_key

    with database.writer.begin() as connection, pytest.raises(UnknownRecord):
        revoke_key(connection, "key_none", 1.0)


def test_a_caller_that_nobody_identified_may_do_and_see_nothing_of_others() -> None:
    for caller in (Caller(), caller_of(Request({"type": "http"}))):
        assert not any(caller.may(scope) for scope in Scope)
        assert caller.sees is not None  # None means every tenant

"""What every test shares: no settings from outside, the stores it runs on, e2e tests marked."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from tests import postgres, sqlite

# Slow machines are no failures, and a red run must be red again when it is repeated.
settings.register_profile("entrogate", deadline=None, derandomize=True)
settings.load_profile("entrogate")

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ENTROGATE_"):
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "e2e"):
            item.add_marker(pytest.mark.e2e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked ``both_stores`` that use a store run on SQLite and on Postgres."""
    marked = metafunc.definition.get_closest_marker("both_stores")
    if marked is not None and "store_url" in metafunc.fixturenames:
        metafunc.parametrize("store_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One for the whole session; where there is none, the test is skipped, or fails if it must."""
    with postgres.server() as server:
        if server is None:
            (pytest.fail if postgres.REQUIRED else pytest.skip)(postgres.MISSING)
        yield server


@pytest.fixture(scope="session")
def _migrated_postgres(postgres_server: postgres.Server) -> Iterator[str]:
    url = postgres_server.create_database()
    Database(StoreSettings(url=url)).close()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def empty_postgres(postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of a database without tables."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def postgres_url(postgres_server: postgres.Server, _migrated_postgres: str) -> str:
    """The URL of a database with our tables, empty. Tests that change the tables make their own."""
    postgres_server.empty(_migrated_postgres)
    return _migrated_postgres


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where this test's store is: SQLite, or both in turn (mark ``both_stores``)."""
    if getattr(request, "param", "sqlite") == "postgres":
        return request.getfixturevalue("postgres_url")
    return sqlite.new_store(tmp_path / "store.db")

"""The migrations and the metadata say the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, select, text

import entrogate.store
from entrogate.access import Key, Scope
from entrogate.errors import StoreError
from entrogate.model_hashes import ModelHashes
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.keys import add_key
from entrogate.store.database import Database
from entrogate.store.migrate import current_revision, downgrade, upgrade
from entrogate.store.schema import REVISION, metadata
from entrogate.store.url import parse_url
from entrogate.store.write.weights import change_weights, delete_weights, read_weights
from entrogate.types import PublishedWeights, WeightsState
from tests.unit.store.made import allowed_call, change, turn


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database without tables."""
    if request.param == "postgres":
        return request.getfixturevalue("empty_postgres")
    return f"sqlite:///{tmp_path}/a.db"


def test_a_migrated_database_has_exactly_the_tables_of_the_metadata(url: str) -> None:
    database = Database(StoreSettings(url=url))
    with database.reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION
    database.close()


def test_a_way_down_that_would_lose_something_is_refused_unless_forced(url: str) -> None:
    database = Database(StoreSettings(url=url))
    with database.writer.begin() as connection:
        downgrade(connection, "0001")  # nothing is there
        upgrade(connection)
        add_key(connection, KEY)
        change_weights(connection, "m", lambda _: [WEIGHTS])
    said = "0001 cannot hold when 1 API keys were last used, 1 API keys, 1 published weights; back"
    with database.writer.begin() as connection:
        with pytest.raises(StoreError, match=said):
            downgrade(connection, "0001")
        assert current_revision(connection) == REVISION
        with pytest.raises(StoreError, match="0004 cannot hold when 1 API keys were last used; "):
            downgrade(connection, "0004")
        downgrade(connection, "0001", force=True)
        assert current_revision(connection) == "0001"
    database.close()


OLDER = [
    script.revision
    for script in ScriptDirectory(
        str(Path(entrogate.store.__file__).parent / "migrations")
    ).walk_revisions()
    if script.revision != REVISION
]


@pytest.mark.parametrize("revision", OLDER)
async def test_what_an_older_revision_can_hold_survives_the_way_down_and_up(
    url: str, revision: str
) -> None:
    store = Store.open(StoreSettings(url=url))
    await store.start()
    for name in ("a", "acme~b", "other~c"):
        first = turn(name, calls=allowed_call(), policy_version="v")
        (head,) = await store.commit_turns([first])
        await store.commit_turns([turn(name, parent=first, head=head, change=change(True))])
    await store.add_feedback(trajectory_id="acme~b", score=0.5)
    await store.remember_policy("v", "kept", "observe", "{}")
    await store.remember_model(["m"], ModelHashes(tokenizer="t"))
    await store.aclose()
    database = Database(StoreSettings(url=url))
    with database.writer.begin() as connection:
        add_key(connection, KEY)
        change_weights(connection, "m", lambda _: [WEIGHTS])
        before = contents(connection)
        downgrade(connection, revision, force=True)
        assert current_revision(connection) == revision
        upgrade(connection)
        after = contents(connection)
    database.close()
    if revision < "0011":
        for row in before["trajectories"]:
            row["policy_version"], row["policy_changes"] = "", 0
    for table, came in (("models", "0009"), ("audit", "0008")):
        if revision < came:
            before[table] = []
    if revision < "0007":  # numbered anew, in the same order
        for each in (before, after):
            order = sorted(each["trajectories"], key=lambda row: row["sequence"])
            each["trajectories"] = [{**row, "sequence": 0} for row in order]
            del each["commits"]
    if revision < "0005":
        before["api_keys"] = [{**row, "last_used_at": None} for row in before["api_keys"]]
    if revision < "0004":
        before["api_keys"] = []
    if revision < "0002":
        before["weights"] = []
    assert after == before
    tenants = {row["id"]: row["tenant"] for row in after["trajectories"]}
    assert tenants == {"a": "", "acme~b": "acme", "other~c": "other"}


def contents(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, in the order of their keys."""
    return {
        table.name: [
            dict(row)
            for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
        ]
        for table in metadata.sorted_tables
    }


def test_tenants_that_an_earlier_way_down_emptied_come_back(url: str) -> None:
    database = Database(StoreSettings(url=url))
    engine = database.writer
    with engine.begin() as connection:
        downgrade(connection, "0006")
        connection.execute(
            text(
                "INSERT INTO trajectories (id, schema_version, tenant, model, created_at,"
                " updated_at, n_turns, n_branches, n_calls, n_suppressed, n_replayed,"
                " completion_tokens, wasted_tokens)"
                " VALUES ('acme~x', 1, '', 'm', 1.0, 2.0, 0, 0, 0, 0, 0, 0, 0)"
            )
        )
        upgrade(connection)
        assert connection.execute(text("SELECT tenant FROM trajectories")).scalar() == "acme"
    database.close()


def test_revision_is_the_newest_script() -> None:
    folder = Path(entrogate.store.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == REVISION


def test_a_database_of_0001_is_brought_up_and_back(url: str) -> None:
    """Its turns stay, weights can be published in it, and the way back leaves what it was."""
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        command.upgrade(alembic(connection), "0001")
        connection.execute(text("INSERT INTO policies VALUES ('v', 'kept', 'observe', '{}', 1.0)"))
        before = set(inspect(connection).get_table_names())
    assert "weights" not in before
    database = Database(StoreSettings(url=url))
    with database.writer.begin() as connection:
        assert current_revision(connection) == REVISION
        assert change_weights(connection, "m", lambda _: [WEIGHTS]) == [WEIGHTS]
        assert read_weights(connection, "another model") == []
        halved = replace(WEIGHTS, share=0.5)
        assert change_weights(connection, "m", lambda _: [halved]) == [halved]
        assert delete_weights(connection, "m", WEIGHTS.version) == []
    database.close()
    with engine.begin() as connection:
        downgrade(connection, "0001")
        assert set(inspect(connection).get_table_names()) == before
        assert connection.execute(text("SELECT name FROM policies")).scalar() == "kept"
    engine.dispose()


@pytest.mark.parametrize("revision", ["0012", REVISION, ""])
def test_the_way_down_leads_to_older_revisions_alone(tmp_path: Path, revision: str) -> None:
    database = Database(StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    with (
        database.writer.begin() as connection,
        pytest.raises(StoreError, match=rf"leads to 0001 or .*, not to {revision}$"),
    ):
        downgrade(connection, revision)
    database.close()


KEY = Key(
    id="k",
    name="key",
    digest=b"digest",
    shown="eg_abc",
    tenant="acme",
    scopes=frozenset({Scope.INFER}),
    created_at=1.0,
    last_used_at=3.0,
)

WEIGHTS = PublishedWeights(
    model="m",
    version="0123456789ab",
    name="m-0123456789ab",
    folder="/loras/one",
    rank=8,
    share=1.0,
    promoted_at=2.0,
    state=WeightsState.SERVING,
    published_at=1.0,
    updated_at=2.0,
)


def alembic(connection: Connection) -> Config:
    config = Config()
    folder = Path(entrogate.store.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    return config

"""The migrations and the metadata say the same."""

from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

import entrogate.store
from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from entrogate.store.migrate import current_revision, downgrade
from entrogate.store.schema import REVISION, metadata
from entrogate.store.url import parse_url
from entrogate.store.write.weights import change_weights, delete_weights, read_weights
from entrogate.types import PublishedWeights, WeightsState


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


@pytest.mark.parametrize("revision", ["0009", REVISION, ""])
def test_the_way_down_leads_to_older_revisions_alone(tmp_path: Path, revision: str) -> None:
    database = Database(StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    with (
        database.writer.begin() as connection,
        pytest.raises(StoreError, match=rf"leads to 0001 or .*, not to {revision}$"),
    ):
        downgrade(connection, revision)
    database.close()


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

"""The migrations and the metadata say the same."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import entrogate.store
from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from entrogate.store.schema import REVISION, metadata


def test_a_migrated_database_has_exactly_the_tables_of_the_metadata(tmp_path: Path) -> None:
    database = Database(StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    with database.reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION
    database.close()


def test_revision_is_the_newest_script() -> None:
    folder = Path(entrogate.store.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == REVISION

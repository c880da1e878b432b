"""Schema revisions: which one a database has, and the way up and down.

Alembic takes 100 ms to import, and an up-to-date database has no need of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from entrogate.errors import StoreError
from entrogate.store import postgres
from entrogate.store.schema import REVISION
from entrogate.store.url import name_of


def current_revision(connection: Connection) -> str | None:
    """The schema revision of the database; None when it is empty.

    Raises `StoreError` when it is not ours.
    """
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables:
        raise StoreError(
            f"store: {name_of(connection.engine.url)} holds other tables "
            f"({', '.join(sorted(tables)[:3])}); it is not an Entrogate database"
        )
    return None


def upgrade(connection: Connection) -> str | None:
    """Bring the database to `REVISION` inside the caller's transaction; what it was before.

    Processes that start at the same moment wait for one another. Raises `StoreError` when it was
    written by a newer version or is not ours.
    """
    current = current_revision(connection)
    if current == REVISION:
        return current
    if postgres.is_postgres(connection):  # SQLite's write lock is held from the beginning
        postgres.lock_migrations(connection)
        current = current_revision(connection)
        if current == REVISION:
            return current
    _require_known(connection, current)
    from alembic import command

    command.upgrade(_config(connection), "head")
    return current


def downgrade(connection: Connection, revision: str, *, force: bool = False) -> None:
    """Take the database back to an older revision, for an older version of Entrogate.

    Raises `StoreError` for a revision that is unknown or newer than what the database has, and,
    unless ``force`` is given, where the older one cannot hold something that is there: each
    migration script says so in its ``losses(connection)``.
    """
    if postgres.is_postgres(connection):
        postgres.lock_migrations(connection)
    current = current_revision(connection)
    if current is None:
        raise StoreError(f"store: {name_of(connection.engine.url)} is empty")
    older = _require_known(connection, current)
    older = older[older.index(current) + 1 :]
    if revision not in older:
        raise StoreError(
            f"store: the way down from revision {current} leads to "
            f"{' or '.join(reversed(older)) or 'nothing'}, not to {revision}"
        )
    lost = [] if force else _losses(connection, revision)
    if lost:
        raise StoreError(
            f"store: revision {revision} cannot hold {', '.join(lost)}; back the store up, then"
            " --force deletes that"
        )
    from alembic import command

    command.downgrade(_config(connection), revision)


def require_current(connection: Connection) -> None:
    """Raise `StoreError` when this version cannot use the database as it is."""
    current = current_revision(connection)
    if current != REVISION:
        raise StoreError(
            f"store: {name_of(connection.engine.url)} has schema revision {current}, this version "
            f"uses {REVISION}; `entrogate store upgrade` or a start of `entrogate serve` migrates "
            "an older one"
        )


def _losses(connection: Connection, revision: str) -> list[str]:
    """What would be gone after the way down to ``revision``, in words."""
    from alembic.script import ScriptDirectory

    lost: list[str] = []
    scripts = ScriptDirectory.from_config(_config(connection))
    current = current_revision(connection)
    for script in scripts.iterate_revisions(current, revision):
        losses: Callable[[Connection], list[str]] | None = getattr(script.module, "losses", None)
        lost += [] if losses is None else losses(connection)
    return lost


def _require_known(connection: Connection, current: str | None) -> list[str]:
    """All revisions of this version, the newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config(connection)).walk_revisions()
    known = [script.revision for script in scripts]
    if current is not None and current not in known:
        raise StoreError(
            f"store: {name_of(connection.engine.url)} has schema revision {current}, which this "
            f"version (newest: {REVISION}) does not know; use the newer Entrogate that wrote it"
        )
    return known


def _config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config

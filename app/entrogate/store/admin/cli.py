"""`entrogate store`: the database's revision, the way up and down, and a copy while it is used."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from sqlalchemy import Connection

from entrogate.private import make_file
from entrogate.settings import StoreSettings
from entrogate.store import postgres
from entrogate.store import sqlite as sqlite_file
from entrogate.store.faults import translated
from entrogate.store.migrate import current_revision
from entrogate.store.migrate import downgrade as bring_down
from entrogate.store.migrate import upgrade as bring_up
from entrogate.store.options import store_option
from entrogate.store.schema import REVISION
from entrogate.store.url import name_of, parse_url


@click.group()
def store() -> None:
    """Migrate the store's database, or copy it while it is in use."""


@store.command()
@store_option
def status(url: str) -> None:
    """Which schema revision the database has, and which one this version uses."""
    with _transaction(url) as connection:
        current = current_revision(connection)
    parsed = parse_url(url)
    click.echo(f"{name_of(parsed)}: revision {current or 'none'}, this version {REVISION}")
    for warning in [] if postgres.is_postgres_url(parsed) else sqlite_file.warnings(parsed):
        click.echo(f"warning: {warning}")


@store.command()
@store_option
def upgrade(url: str) -> None:
    """Bring the database to the revision of this version, as `serve` does when it starts."""
    with _transaction(url, must_exist=False) as connection:
        before = bring_up(connection)
    click.echo(f"revision {before or 'none'} -> {REVISION}")


@store.command()
@click.argument("revision")
@store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Delete what REVISION cannot hold.")
def downgrade(revision: str, url: str, *, yes: bool, force: bool) -> None:
    """Take the database back to REVISION, for an older Entrogate. Stop every gateway first.

    Refused where only newer revisions can hold what is there, unless --force deletes that.
    """
    if not yes:
        click.confirm("Are all gateways of this store stopped?", abort=True)
    with _transaction(url) as connection:
        before = current_revision(connection)
        bring_down(connection, revision, force=force)
    click.echo(f"revision {before} -> {revision}")


@store.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@store_option
def backup(file: Path, url: str) -> None:
    """Copy an SQLite store to the new FILE while gateways use it. For Postgres there is pg_dump."""
    parsed = parse_url(url)
    if postgres.is_postgres_url(parsed):
        raise click.UsageError("this copies SQLite; for Postgres use pg_dump")
    if file.exists():
        raise click.UsageError(f"{file} exists")
    sqlite_file.check(parsed, must_exist=True)
    with (
        translated(f"cannot copy {name_of(parsed)} to {file}"),
        closing(sqlite3.connect(str(parsed.database))) as source,
    ):
        make_file(file)  # an empty file is filled, and keeps its mode
        try:
            source.execute("VACUUM INTO ?", (str(file),))
        except sqlite3.Error:
            file.unlink()
            raise
    click.echo(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def _transaction(url: str, *, must_exist: bool = True) -> Generator[Connection]:
    """A writing transaction on the database as it is. Raises `StoreError`."""
    parsed, settings = parse_url(url), StoreSettings(url=url)
    if postgres.is_postgres_url(parsed):
        engine = postgres.writing_engine(parsed, settings)
    else:
        sqlite_file.check(parsed, must_exist=must_exist)
        if not must_exist:
            sqlite_file.create(parsed)
        engine = sqlite_file.writing_engine(parsed, settings)
    try:
        with translated(f"cannot use {name_of(parsed)}"), engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()

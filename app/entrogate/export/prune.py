"""``entrogate prune``: deletes old trajectories; here because it looks at datasets."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from entrogate.settings import StoreSettings
from entrogate.store.admin.audit import Act, Deed, command_actor, note
from entrogate.store.admin.retention import Expiry, Pruned
from entrogate.store.admin.retention import prune as delete_old
from entrogate.store.database import Database
from entrogate.store.faults import translated
from entrogate.store.options import store_option

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")


class _Age(click.ParamType[float]):
    """``30d`` as seconds."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        found = _AGE.fullmatch(str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no age; say for example 90m, 12h, 30d or 8w", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.command()
@store_option
@click.option("--older-than", "age", type=_Age(), required=True, help="90m, 12h, 30d, 8w …")
@click.option("--keep-outcomes", is_flag=True, help="Only those without an outcome.")
@click.option("--exported-to", "dataset", help="Only those that are in this dataset.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--vacuum", is_flag=True, help="Give freed space back (SQLite; writers wait).")
def prune(
    *, url: str, age: float, keep_outcomes: bool, dataset: str | None, dry_run: bool, vacuum: bool
) -> None:
    """Delete trajectories to which nothing has come for so long, while gateways serve."""
    exported = None if dataset is None else _exported(dataset)
    expiry = Expiry(
        before=time.time() - age,
        keep_outcomes=keep_outcomes,
        spare=lambda id_: exported is not None and not exported(id_),
    )
    database = Database(StoreSettings(url=url), migrating=False)
    try:
        if vacuum and database.shared:
            raise click.UsageError("--vacuum is for SQLite; Postgres frees space by itself")
        done = delete_old(database, expiry, dry_run=dry_run, progress=_tell)
        if done.trajectories and not dry_run:
            _note(database, done, age)
        if vacuum and not dry_run:
            _vacuum(str(database.url.database))
    finally:
        database.close()
    click.echo(_summary(done, dry_run=dry_run))


def _note(database: Database, done: Pruned, age: float) -> None:
    detail = {"trajectories": done.trajectories, "turns": done.turns}
    target = f"older than {age:g} s"
    deed = Deed(actor=command_actor(), action=Act.PRUNE, target=target, detail=detail)
    with translated("cannot write"), database.writer.begin() as connection:
        note(connection, deed)


def _exported(dataset: str) -> Callable[[str], bool]:
    """Whether a trajectory is in the dataset. Raises ExportError."""
    from entrogate.export.dataset import Dataset
    from entrogate.export.known import Known

    return Known(Dataset.reading(dataset)).__contains__


def _vacuum(file: str) -> None:
    with translated(f"cannot vacuum {file}"), closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM")


def _tell(done: Pruned) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done.trajectories} trajectories, {done.turns} turns", nl=False, err=True)


def _summary(done: Pruned, *, dry_run: bool) -> str:
    verb = "would delete" if dry_run else "deleted"
    said = f"{verb} {done.trajectories} trajectories with {done.turns} turns"
    if not dry_run:
        said += f", {done.toolsets} unused lists of tools"
    if done.spared:
        said += f"; kept {done.spared} that are not exported yet"
    return said

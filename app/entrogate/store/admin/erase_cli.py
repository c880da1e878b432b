"""`entrogate trajectories erase` and `entrogate audit list`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

import click
import orjson

from entrogate.access import check_tenant
from entrogate.settings import StoreSettings
from entrogate.store.admin.administration import erase_now
from entrogate.store.admin.audit import Act, AuditFilter, Entry, command_actor, read_audit
from entrogate.store.admin.erasure import Erased, ToErase, count
from entrogate.store.database import Database
from entrogate.store.options import store_option
from entrogate.store.read.show import table, time_text


@click.command()
@click.argument("trajectory_ids", metavar="[ID]...", nargs=-1)
@store_option
@click.option("--task", "task_id", help="All trajectories of this task (of --tenant).")
@click.option(
    "--tenant", help="Whose task; without --task and IDs all of this tenant's ('': the default)."
)
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(
    trajectory_ids: tuple[str, ...],
    url: str,
    *,
    task_id: str | None,
    tenant: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Erase trajectories for good, while gateways serve: by ID, by task, or all of a tenant.

    They are not exported any more; `entrogate export --erase` takes them out of data sets.
    """
    chosen = _chosen(trajectory_ids, task_id, tenant)
    with closing(Database(StoreSettings(url=url), migrating=False)) as database:
        found = [database.read(lambda c, each=each: count(c, each)) for each in chosen]
        total = sum(found, Erased())
        said = f"{total.trajectories} trajectories with {total.turns} turns"
        if dry_run:
            click.echo(f"would erase {said}")
            return
        if not yes:
            click.confirm(f"Erase {said} for good?", abort=True)
        actor = command_actor()
        done = sum((erase_now(database, each, actor=actor) for each in chosen), Erased())
    click.echo(f"erased {done.trajectories} trajectories with {done.turns} turns")


def _chosen(ids: tuple[str, ...], task_id: str | None, tenant: str | None) -> list[ToErase]:
    if ids:
        if task_id is not None or tenant is not None:
            raise click.UsageError("name trajectories, a task or a tenant, not several of these")
        return [ToErase.trajectory(id_) for id_ in dict.fromkeys(ids)]
    if task_id is None and tenant is None:
        raise click.UsageError("name what to erase: ID…, --task or --tenant")
    try:
        return [ToErase(task_id=task_id, tenant=check_tenant(tenant or ""))]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tenant") from None


@click.group()
def audit() -> None:
    """Who did what to the records and the keys."""


@audit.command("list")
@store_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", type=int, help="Where an earlier page ended.")
@click.option("--actor", help="Only of this one: a key's id, cli:USER, gateway, - (no key).")
@click.option("--action", type=click.Choice([act.value for act in Act]), help="Only this.")
@click.option("--target", help="Only on this trajectory, key, policy or weights.")
@click.option("--tenant", help="Only this tenant's ('': the default one's).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(
    url: str,
    *,
    limit: int,
    before: int | None,
    actor: str | None,
    action: str | None,
    target: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """One line per entry, the latest first."""
    wanted = AuditFilter(actor=actor, action=action, target=target, tenant=tenant)
    with closing(Database(StoreSettings(url=url), migrating=False)) as database:
        page = database.read(lambda c: read_audit(c, wanted, limit=limit, before=before))
    if as_json:
        told = {
            "items": [asdict(entry) for entry in page.entries],
            "next_before": page.next_before,
        }
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    head = ["entry", "time (UTC)", "actor", "action", "target", "tenant", "detail"]
    for line in table([head, *map(_line, page.entries)]):
        click.echo(line)
    if page.next_before is not None:
        click.echo(f"more: --before {page.next_before}", err=True)


def _line(entry: Entry) -> list[str]:
    detail = " ".join(
        f"{name}={orjson.dumps(value).decode()}" for name, value in entry.detail.items()
    )
    when = time_text(entry.at)
    return [
        str(entry.id),
        when,
        entry.actor,
        entry.action,
        entry.target,
        entry.tenant or "-",
        detail or "-",
    ]

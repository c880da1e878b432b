"""`entrogate trajectories` and `entrogate policy replay`: the store from a terminal, read only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson

from entrogate.gate.policy import load_policy
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.options import opened, store_option
from entrogate.store.read.replay import ReplayReport, replay_store
from entrogate.store.read.show import list_lines, show_lines, table
from entrogate.types import Action
from entrogate.wire.body import to_json


@click.group()
def trajectories() -> None:
    """List and show recorded trajectories."""


@trajectories.command("list")
@store_option
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="Where an earlier page ended.")
@click.option("--tenant", help="Only this tenant's ('': the default one's).")
@click.option("--task", "task_id", help="Only this task.")
@click.option("--model", help="Only this model.")
@click.option("--mode", type=click.Choice(["observe", "enforce", "explore"]))
@click.option("--weight-version", help="Only with turns of these weights.")
@click.option("--tool", help="Only with a call of this tool.")
@click.option("--decision", type=click.Choice([*Action]), help="Only with a call that became so.")
@click.option("--outcome/--no-outcome", "has_outcome", default=None, help="With feedback or not.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(url: str, *, limit: int, cursor: str | None, as_json: bool, **wanted: Any) -> None:
    """One line per trajectory, newest first."""
    with opened(url) as store:
        try:
            page = asyncio.run(
                store.list_trajectories(TrajectoryFilter(**wanted), limit=limit, cursor=cursor)
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if as_json:
        _print_json({"items": page.items, "next_cursor": page.next_cursor})
        return
    for line in list_lines(page.items):
        click.echo(line)
    if page.next_cursor:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


@trajectories.command("show")
@click.argument("trajectory_id", metavar="ID")
@store_option
@click.option("--tokens", is_flag=True, help="With --json: the token arrays too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(trajectory_id: str, url: str, *, tokens: bool, as_json: bool) -> None:
    """Trajectory ID turn by turn, with messages, entropies and decisions."""
    with opened(url) as store:
        found = asyncio.run(store.get_trajectory(trajectory_id, tokens=tokens and as_json))
    if as_json:
        _print_json(found)
        return
    for line in show_lines(found):
        click.echo(line)


@click.command()
@store_option
@click.option("--policy", "policy_file", help="A bundled name or a YAML file to decide by instead.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def replay(url: str, policy_file: str | None, json_file: Path | None) -> None:
    """Decide every stored call again from its stored features.

    Without --policy each call is decided by the policy it was decided by, and any difference is an
    error (exit status 1). With --policy the table says what that policy would change.
    """
    policy = None if policy_file is None else load_policy(policy_file, can_force=True)
    with opened(url) as store:
        report = replay_store(store, policy)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    _print_report(report)
    if policy is None and (report.mismatches or report.no_policy):
        raise SystemExit(1)


def _print_report(report: ReplayReport) -> None:
    under = report.policy or "the policies they were decided by"
    click.echo(f"{report.calls} calls in {report.turns} turns, decided again under {under}")
    click.echo(f"equal: {report.equal}, different: {report.mismatches}")
    if report.replayed:
        counts = ", ".join(f"{action} {count}" for action, count in report.replayed.most_common())
        click.echo(f"decided again: {counts}")
    for version, count in report.no_policy.most_common():
        click.echo(f"not replayed: {count} calls of policy version {version}, which is not stored")
    if report.changed:
        rows = [["tool", "stored", "replayed", "calls"]]
        rows += [[*key, str(count)] for key, count in report.changed.most_common()]
        for line in table(rows):
            click.echo(line)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(to_json(value), indent=2).decode())

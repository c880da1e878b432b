"""`entrogate policy versions` and `show`: the policies that were in force on a store."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime

import click
import orjson
import yaml

from entrogate.errors import ConfigError
from entrogate.store.options import opened, store_option
from entrogate.store.read.show import table


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def versions(url: str, *, as_json: bool) -> None:
    """List every policy that was in force, latest first, with its number of trajectories."""
    with opened(url) as store:
        kept = asyncio.run(store.policies.versions())
    if as_json:
        found = [asdict(each) for each in kept]
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    rows = [["version", "name", "mode", "first (UTC)", "last (UTC)", "trajectories"]]
    for each in kept:
        times = _stamp(each.created_at), _stamp(each.last)
        rows.append([each.version, each.name, each.mode, *times, str(each.n_trajectories)])
    for line in table(rows):
        click.echo(line)


@click.command()
@click.argument("version")
@store_option
def show(version: str, url: str) -> None:
    """Print the policy VERSION as a policy file."""
    with opened(url) as store:
        text = asyncio.run(store.policies.text(version))
    if text is None:
        raise ConfigError(
            f"no policy version {version!r} is stored; `entrogate policy versions` lists them"
        )
    click.echo(f"# version {version}")
    click.echo(yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True), nl=False)


def _stamp(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

"""`entrogate keys`: API keys made, shown and revoked; running gateways see it in seconds."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from entrogate.access import SHOWN_CHARACTERS, Key, Scope, check_tenant, digest_of, new_secret
from entrogate.settings import StoreSettings
from entrogate.store.admin.audit import Act, Deed, command_actor, note
from entrogate.store.admin.keys import add_key, read_keys, revoke_key
from entrogate.store.database import Database
from entrogate.store.faults import translated
from entrogate.store.options import store_option
from entrogate.store.read.show import table, time_text

T = TypeVar("T")

_LIFE = re.compile(r"(\d+)([hdw])")
_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. With the first one a gateway answers nobody without a key."""


@keys.command()
@store_option
@click.option("--name", required=True, help="Whose it is, for lists.")
@click.option("--tenant", default="", help="Whose trajectories it makes and sees (default: '').")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([str(scope) for scope in Scope]),
    multiple=True,
    default=("infer", "feedback"),
    show_default=True,
    help="Repeat for several.",
)
@click.option("--rpm", type=click.IntRange(1), help="Requests per minute, in each gateway.")
@click.option("--concurrency", type=click.IntRange(1), help="Requests at a time, in each gateway.")
@click.option("--expires", help="How long it is valid: 12h, 90d, 8w. Default: until revoked.")
def create(
    *,
    url: str,
    name: str,
    tenant: str,
    scopes: tuple[str, ...],
    rpm: int | None,
    concurrency: int | None,
    expires: str | None,
) -> None:
    """Make a key and print its secret, which is shown this once."""
    now = time.time()
    secret = new_secret()
    try:
        check_tenant(tenant)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tenant") from None
    key = Key(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        digest=digest_of(secret),
        shown=secret[:SHOWN_CHARACTERS],
        tenant=tenant,
        scopes=frozenset(Scope(scope) for scope in scopes),
        requests_per_minute=rpm,
        concurrency=concurrency,
        created_at=now,
        expires_at=None if expires is None else now + _seconds(expires),
    )

    def add(connection: Connection) -> None:
        add_key(connection, key)
        detail = {"name": name, "scopes": sorted(key.scopes)}
        note(connection, _deed(Act.CREATE_KEY, key, detail))

    _write(url, add)
    click.echo(f"{key.id}: scopes {' '.join(sorted(key.scopes))}, tenant {tenant!r}", err=True)
    click.echo(secret)


@keys.command("list")
@store_option
def list_(url: str) -> None:
    """Every key, without its secret."""
    now = time.time()
    with closing(Database(StoreSettings(url=url), migrating=False)) as database:
        found = database.read(read_keys)
    rows = [
        (
            key.id,
            key.shown + "…",
            key.name,
            key.tenant or "-",
            " ".join(sorted(key.scopes)),
            str(key.requests_per_minute or "-"),
            str(key.concurrency or "-"),
            "-" if key.last_used_at is None else time_text(key.last_used_at),
            _state(key, now),
        )
        for key in found
    ]
    head = ("id", "secret", "name", "tenant", "scopes", "rpm", "concurrency", "last used", "state")
    for line in table([head, *rows]):
        click.echo(line)


@keys.command()
@click.argument("key", metavar="ID")
@store_option
def revoke(key: str, url: str) -> None:
    """Revoke the key ID (or the beginning of its secret, as lists show it)."""

    def withdraw(connection: Connection) -> Key:
        found = revoke_key(connection, key.rstrip("…"), time.time())
        if found.revoked_at is None:  # not revoked already
            note(connection, _deed(Act.REVOKE_KEY, found, {"name": found.name}))
        return found

    revoked = _write(url, withdraw)
    click.echo(f"{revoked.id} ({revoked.name}) is revoked")


def _deed(action: Act, key: Key, detail: dict[str, Any]) -> Deed:
    return Deed(
        actor=command_actor(), action=action, target=key.id, tenant=key.tenant, detail=detail
    )


def _write(url: str, work: Callable[[Connection], T]) -> T:
    with (
        closing(Database(StoreSettings(url=url))) as database,
        translated("cannot write"),
        database.writer.begin() as connection,
    ):
        return work(connection)


def _state(key: Key, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    until = datetime.fromtimestamp(key.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"until {until}" if now < key.expires_at else "expired"


def _seconds(life: str) -> float:
    found = _LIFE.fullmatch(life)
    if found is None or int(found[1]) == 0:
        said = f"{life!r} is no time; say for example 12h, 90d or 8w"
        raise click.BadParameter(said, param_hint="--expires")
    return int(found[1]) * _UNITS[found[2]]

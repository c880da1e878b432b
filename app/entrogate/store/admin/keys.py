"""API keys in the database; `access` says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from entrogate.access import Key, Scope
from entrogate.errors import UnknownRecord
from entrogate.store.schema import api_keys


def read_keys(connection: Connection) -> list[Key]:
    """All keys, the oldest first; revoked and expired ones too."""
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
    return [_key(row) for row in rows]


def add_key(connection: Connection, key: Key) -> None:
    """Insert ``key``. Raises IntegrityError for an id or a digest that is there already."""
    values = {name: getattr(key, name) for name in Key.__dataclass_fields__}
    values["scopes"] = " ".join(sorted(key.scopes))
    connection.execute(api_keys.insert(), values)


def revoke_key(connection: Connection, id_: str, now: float) -> Key:
    """Revoke the key with this id, or with the only secret that begins so; the key.

    Raises `UnknownRecord`. One that is revoked already stays as it is.
    """
    found = [key for key in read_keys(connection) if id_ in (key.id, key.shown)]
    if len(found) != 1:
        raise UnknownRecord(f"no key {id_!r} is stored" if not found else f"{id_!r} is ambiguous")
    (key,) = found
    change = api_keys.update().where(api_keys.c.id == key.id, api_keys.c.revoked_at.is_(None))
    connection.execute(change.values(revoked_at=now))
    return key


def note_uses(connection: Connection, uses: Mapping[str, float]) -> None:
    """When keys were last used, by id; another gateway may know of a later use."""
    columns = api_keys.c
    for id_, at in uses.items():
        is_later = or_(columns.last_used_at.is_(None), columns.last_used_at < at)
        change = api_keys.update().where(columns.id == id_, is_later)
        connection.execute(change.values(last_used_at=at))


def _key(row: Row[*tuple[Any, ...]]) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        digest=bytes(row.digest),
        shown=row.shown,
        tenant=row.tenant,
        # A scope of a later version gives no rights here.
        scopes=frozenset(scope for scope in Scope if scope in row.scopes.split()),
        requests_per_minute=row.requests_per_minute,
        concurrency=row.concurrency,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )

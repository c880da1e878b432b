"""Policies that decided, kept so that their decisions can be replayed."""

from __future__ import annotations

import time

from sqlalchemy import Connection, select

from entrogate.store.schema import policies


def remember_policy(
    connection: Connection, version: str, name: str, mode: str, content: str
) -> None:
    """Insert the policy unless its version is there: a version is a hash of the content."""
    known = select(policies.c.version).where(policies.c.version == version)
    if connection.execute(known).first() is None:
        row = {"version": version, "name": name, "mode": mode, "content": content}
        connection.execute(policies.insert(), row | {"created_at": time.time()})

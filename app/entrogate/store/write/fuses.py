"""Writing fuses: what the audits say, and arming them again."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, text

from entrogate.store import postgres
from entrogate.store.admin.administration import Run
from entrogate.store.admin.audit import Deed, note
from entrogate.store.commits import database_time, last_sequence
from entrogate.store.read.fuses import (
    Audits,
    Fuse,
    FuseState,
    read_audits,
    read_fuse,
    read_fuses,
)
from entrogate.store.schema import fuses


class FuseRecords:
    """The fuses of an open store; ``write`` and ``read`` run transactions."""

    def __init__(self, *, write: Run, read: Run) -> None:
        self._write = write
        self._read = read

    async def all(self) -> list[Fuse]:
        """Every fuse that is stored, of policies that are no longer in use too."""
        return await self._read(read_fuses)

    async def audits(self, version: str) -> Audits:
        """The fuses and the audits of the policy ``version``."""
        return await self._read(lambda connection: read_audits(connection, version))

    async def save(self, found: Fuse, deed: Deed) -> Fuse:
        """Store what the audits say; what is stored then.

        A fuse that is blown stays so, and one that was armed again meanwhile is left as it is.
        ``deed`` is noted where the fuse blows by this.
        """
        return await self._write(lambda connection: save_fuse(connection, found, deed))

    async def arm(self, version: str, tool: str, deed: Deed) -> Fuse:
        """Begin anew: armed, without audits. ``deed`` is noted."""
        return await self._write(lambda connection: arm_fuse(connection, version, tool, deed))


def save_fuse(connection: Connection, found: Fuse, deed: Deed) -> Fuse:
    """As `FuseRecords.save`, inside the caller's transaction."""
    _lock(connection)
    stored = read_fuse(connection, found.policy_version, found.tool)
    if stored is not None:
        if stored.armed_sequence != found.armed_sequence:
            return stored
        if stored.state is FuseState.BLOWN:
            found = replace(found, state=FuseState.BLOWN)
    was = FuseState.ARMED if stored is None else stored.state
    changed_at = database_time(connection) if stored is None else stored.changed_at
    if found.state is not was:
        changed_at = database_time(connection)
        note(connection, deed)
    found = replace(
        found,
        changed_at=changed_at,
        armed_at=changed_at if stored is None else stored.armed_at,
    )
    _put(connection, found)
    return found


def arm_fuse(connection: Connection, version: str, tool: str, deed: Deed) -> Fuse:
    """As `FuseRecords.arm`, inside the caller's transaction."""
    _lock(connection)
    now = database_time(connection)
    fuse = Fuse(
        policy_version=version,
        tool=tool,
        state=FuseState.ARMED,
        armed_at=now,
        armed_sequence=last_sequence(connection),
        changed_at=now,
        n=0,
        losses=0,
        lower=None,
        upper=None,
    )
    _put(connection, fuse)
    note(connection, deed)
    return fuse


def _lock(connection: Connection) -> None:
    if postgres.is_postgres(connection):  # no other gateway changes what is read here
        connection.execute(text("LOCK TABLE fuses IN SHARE ROW EXCLUSIVE MODE"))


def _put(connection: Connection, fuse: Fuse) -> None:
    row: dict[str, Any] = asdict(fuse) | {"state": fuse.state.value}
    key = (fuses.c.policy_version == fuse.policy_version, fuses.c.tool == fuse.tool)
    if connection.execute(fuses.update().where(*key).values(row)).rowcount == 0:
        connection.execute(fuses.insert(), row)

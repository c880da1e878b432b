"""Erasure: trajectories go with all that hangs on them; tombstones keep them from coming back.

A tombstone is a digest of the trajectory's id. It is looked up before a trajectory is begun
(`write.turns`), so that a turn that was under way when its trajectory was erased is not stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select

from entrogate.access import digest_of_trajectory, tenant_of
from entrogate.errors import ErasedRecord, UnknownRecord
from entrogate.store.admin.audit import Act, Deed, note
from entrogate.store.schema import erasures, toolsets, trajectories, turns

BATCH = 100
"""Trajectories erased in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToErase:
    """One trajectory, the trajectories of a task of ``tenant``, or all of ``tenant``."""

    trajectory_id: str | None = None
    task_id: str | None = None
    tenant: str = ""

    @classmethod
    def trajectory(cls, trajectory_id: str) -> ToErase:
        """This one alone."""
        return cls(trajectory_id=trajectory_id, tenant=tenant_of(trajectory_id))

    @property
    def kind(self) -> str:
        """What is named: a trajectory, a task or a tenant."""
        if self.trajectory_id is not None:
            return "trajectory"
        return "tenant" if self.task_id is None else "task"

    @property
    def name(self) -> str:
        """Its id or name, as the audit says it."""
        return self.trajectory_id or self.task_id or self.tenant

    def condition(self) -> ColumnElement[bool]:
        """Which rows of ``trajectories`` these are."""
        columns = trajectories.c
        if self.trajectory_id is not None:
            return columns.id == self.trajectory_id
        own = columns.tenant == self.tenant
        return own if self.task_id is None else own & (columns.task_id == self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """How much was erased (in a dry run: would be)."""

    trajectories: int = 0
    turns: int = 0

    def __add__(self, other: Erased) -> Erased:
        return Erased(
            trajectories=self.trajectories + other.trajectories, turns=self.turns + other.turns
        )


def count(connection: Connection, chosen: ToErase) -> Erased:
    """How much there is. Raises `UnknownRecord` where that is nothing, `ErasedRecord` where it
    was erased already."""
    columns = trajectories.c
    query = select(func.count(), func.coalesce(func.sum(columns.n_turns), 0))
    found, n_turns = connection.execute(query.where(chosen.condition())).one()
    if found:
        return Erased(trajectories=found, turns=n_turns)
    if chosen.trajectory_id is not None:
        raise unknown(connection, chosen.trajectory_id)
    raise UnknownRecord(f"no trajectory of {chosen.kind} {chosen.name!r} is stored")


def erase_some(connection: Connection, chosen: ToErase) -> Erased:
    """Erase up to BATCH of them, waiting for whoever writes to them."""
    columns = trajectories.c
    query = select(columns.id, columns.n_turns).where(chosen.condition())
    rows = connection.execute(query.order_by(columns.id).limit(BATCH).with_for_update()).all()
    ids = [row.id for row in rows]
    if not ids:
        return Erased()
    now = time.time()
    tombstones = [{"digest": digest_of_trajectory(id_), "erased_at": now} for id_ in ids]
    connection.execute(erasures.insert(), tombstones)
    connection.execute(delete(trajectories).where(columns.id.in_(ids)))
    return Erased(trajectories=len(ids), turns=sum(row.n_turns for row in rows))


def begin(connection: Connection, chosen: ToErase, actor: str) -> Erased:
    """The first part of an erasure, with its entry in the audit. Raises as `count`."""
    found = count(connection, chosen)
    detail = {"kind": chosen.kind, "trajectories": found.trajectories, "turns": found.turns}
    deed = Deed(
        actor=actor, action=Act.ERASE, target=chosen.name, tenant=chosen.tenant, detail=detail
    )
    note(connection, deed)
    return erase_some(connection, chosen)


def sweep(connection: Connection) -> int:
    """Delete the lists of tools that nothing refers to any more; how many."""
    used = exists().where(turns.c.toolset_id == toolsets.c.id)
    return connection.execute(delete(toolsets).where(~used)).rowcount


def is_erased(connection: Connection, trajectory_id: str) -> bool:
    """Whether a trajectory of this id was erased."""
    digest = digest_of_trajectory(trajectory_id)
    query = select(erasures.c.digest).where(erasures.c.digest == digest)
    return connection.execute(query).first() is not None


def unknown(connection: Connection, trajectory_id: str) -> UnknownRecord:
    """Why there is no such trajectory: an error to be raised."""
    if is_erased(connection, trajectory_id):
        return ErasedRecord(f"trajectory {trajectory_id!r} was erased")
    return UnknownRecord(f"no trajectory {trajectory_id!r} is stored")


def all_digests(connection: Connection) -> frozenset[str]:
    """The digests of all tombstones."""
    return frozenset(connection.scalars(select(erasures.c.digest)))


def marks(connection: Connection) -> int:
    """How many tombstones there are: a number that changes with every erasure."""
    return connection.execute(select(func.count()).select_from(erasures)).scalar_one()

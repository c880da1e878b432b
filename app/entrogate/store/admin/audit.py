"""The audit: who did what to the records and the keys. Rows are added, never changed.

An entry holds ids, names and counts; no secret, no prompt, no answer, no tool result.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Connection, select

from entrogate.store.schema import audit

MAX_PAGE = 1000
_LARGEST_ID = 2**63 - 1  # that a database can compare with
ANYBODY = "-"
"""The actor where no API key is needed."""

GATEWAY = "gateway"
"""The actor of what a gateway does when it starts: what its operator told it to."""


class Act(StrEnum):
    """What was done."""

    BEGIN = "trajectory.begin"  # the first turn of a trajectory
    JUDGE = "feedback.give"
    ERASE = "trajectory.erase"
    PRUNE = "trajectory.prune"
    PUBLISH = "weights.publish"
    SHARE = "weights.share"
    ROLL_BACK = "weights.roll_back"
    POLICY = "policy.use"
    BLOW_FUSE = "fuse.blow"
    ARM_FUSE = "fuse.arm"
    TRIAL = "policy.trial"
    PROMOTE = "policy.promote"
    WITHDRAW = "policy.withdraw"
    CREATE_KEY = "key.create"
    REVOKE_KEY = "key.revoke"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something that was done.

    ``actor`` is the id of an API key, ``cli:USER``, ANYBODY or GATEWAY.
    """

    actor: str
    action: Act
    target: str  # an id or a name; what kind, the action says
    tenant: str = ""  # whose records or keys it touches
    detail: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def row(self) -> dict[str, Any]:
        """The row of ``audit`` that is added for it now."""
        detail = orjson.dumps(dict(self.detail)).decode() if self.detail else None
        return {
            "at": time.time(),
            "actor": self.actor,
            "action": self.action.value,
            "target": self.target,
            "tenant": self.tenant,
            "detail": detail,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Conditions that all have to hold; None asks for nothing."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    tenant: str | None = None
    since: float | None = None  # seconds since the epoch
    until: float | None = None  # exclusive


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the audit: a `Deed` that was noted."""

    id: int  # rising in the order of entries
    at: float  # seconds since the epoch
    actor: str
    action: str  # one of `Act`, or one of a later version
    target: str
    tenant: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """Entries, the latest first; ``next_before`` is None on the last page."""

    entries: list[Entry]
    next_before: int | None


def command_actor() -> str:
    """The actor of a command: the user of the operating system who gave it."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # no name in the environment nor in the user database
        return f"cli:{os.getuid()}"


def note(connection: Connection, *deeds: Deed) -> None:
    """Add what was done, inside the caller's transaction."""
    if deeds:
        connection.execute(audit.insert(), [deed.row() for deed in deeds])


def read_audit(
    connection: Connection, wanted: AuditFilter, *, limit: int, before: int | None = None
) -> AuditPage:
    """A page of entries, those before the entry ``before``. ValueError for a bad limit."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}, it must be between 1 and {MAX_PAGE}")
    columns = audit.c
    query = select(audit)
    for name in ("actor", "action", "target", "tenant"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(columns[name] == value)
    if wanted.since is not None:
        query = query.where(columns.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(columns.at < wanted.until)
    if before is not None:
        query = query.where(columns.id < max(0, min(before, _LARGEST_ID)))
    rows = connection.execute(query.order_by(columns.id.desc()).limit(limit + 1)).mappings().all()
    entries = [Entry(**{**row, "detail": orjson.loads(row["detail"] or "{}")}) for row in rows]
    more = len(entries) > limit
    return AuditPage(entries=entries[:limit], next_before=entries[limit - 1].id if more else None)


def note_policies(connection: Connection, main: Deed, trial: Deed | None) -> None:
    """Add which policies decide from now on, so far as the latest entries do not say so already.

    ``trial``: None where no policy is on trial, of which `main`'s actor is then the cause.
    """
    said = _latest(connection, Act.POLICY, Act.PROMOTE)
    if said is None or said[1:] != (main.target, main.row()["detail"]):
        note(connection, main)
    said = _latest(connection, Act.TRIAL, Act.WITHDRAW, Act.PROMOTE)
    if trial is not None:
        if said != (trial.action.value, trial.target, trial.row()["detail"]):
            note(connection, trial)
    elif said is not None and said[0] == Act.TRIAL.value:
        note(connection, Deed(actor=main.actor, action=Act.WITHDRAW, target=said[1]))


def _latest(connection: Connection, *acts: Act) -> tuple[str, str, str | None] | None:
    """Action, target and detail (JSON) of the latest entry of these."""
    columns = audit.c
    query = select(columns.action, columns.target, columns.detail)
    query = query.where(columns.action.in_([act.value for act in acts]))
    row = connection.execute(query.order_by(columns.id.desc()).limit(1)).first()
    return None if row is None else (row.action, row.target, row.detail)

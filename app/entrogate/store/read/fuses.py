"""Fuses as they are stored, and the audits that they are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, exists, select

from entrogate.gate.reasons import AUDITED
from entrogate.label.shadows import RIGHT
from entrogate.store.audited import is_audited
from entrogate.store.commits import database_time
from entrogate.store.schema import calls, fuses, shadows, trajectories, turns
from entrogate.types import Action, Mode, ShadowPurpose


class FuseState(StrEnum):
    """Whether a tool is gated as its policy says, or only observed."""

    ARMED = "armed"
    BLOWN = "blown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuse:
    """The fuse of one tool under one policy.

    ``lower`` and ``upper`` bound its loss rate (`risk.sequence.watch`), None before the first
    audit was judged. What was committed up to ``armed_sequence`` does not count (0: all counts);
    times are in seconds since the epoch.
    """

    policy_version: str
    tool: str
    state: FuseState
    armed_at: float
    armed_sequence: int
    changed_at: float
    n: int  # judged audits
    losses: int  # of them, those where the call was needed
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """A trajectory whose first suppressed turn was let through for the audit.

    ``lost``: the answer is right as observed and would have been wrong without the calls; None
    while one of the two is not judged.
    """

    tool: str
    sequence: int  # of the last change of its trajectory
    created_at: float  # of the turn, seconds since the epoch
    lost: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audits:
    """What is stored of one policy version; ``audited`` in the order of commits."""

    fuses: dict[str, Fuse]  # by tool
    audited: tuple[Audited, ...]
    now: float  # by the clock that dates commits

    def counted(self, tool: str, *, pooled: bool = False) -> list[Audited]:
        """Those that count for the fuse of ``tool``: all since it was last armed.

        ``pooled``: those of other tools as well. Parallel calls of several tools are one audit.
        """
        fuse = self.fuses.get(tool)
        if pooled:
            own = list({(each.sequence, each.created_at): each for each in self.audited}.values())
        else:
            own = [each for each in self.audited if each.tool == tool]
        if fuse is None or fuse.armed_sequence == 0:
            return own
        own = [each for each in own if each.sequence > fuse.armed_sequence]
        # An outcome may come long after its turn, and must not count for a fuse that was armed in
        # between. A clock that was set back since says nothing of that.
        if fuse.armed_at > self.now:
            return own
        return [each for each in own if each.created_at >= fuse.armed_at]


def read_fuse(connection: Connection, version: str, tool: str) -> Fuse | None:
    """The fuse of ``tool`` under the policy ``version``; None where nothing is stored of it."""
    query = select(fuses).where(fuses.c.policy_version == version, fuses.c.tool == tool)
    row = connection.execute(query).mappings().first()
    return None if row is None else _fuse(row)


def read_fuses(connection: Connection) -> list[Fuse]:
    """All that is stored, by tool."""
    rows = connection.execute(select(fuses).order_by(fuses.c.tool, fuses.c.policy_version))
    return [_fuse(row) for row in rows.mappings()]


def read_audits(connection: Connection, version: str) -> Audits:
    """The fuses and the audits of the policy ``version``."""
    stored = select(fuses).where(fuses.c.policy_version == version)
    found = [_fuse(row) for row in connection.execute(stored).mappings()]
    query = (
        select(
            calls.c.name,
            turns.c.created_at,
            trajectories.c.sequence,
            trajectories.c.outcome,
            shadows.c.score,
        )
        .distinct()  # parallel calls of one tool are one audit
        .add_columns(trajectories.c.id)
        .select_from(shadows)
        .join(turns, turns.c.id == shadows.c.turn_id)
        .join(trajectories, trajectories.c.id == turns.c.trajectory_id)
        .join(calls, calls.c.turn_id == turns.c.id)
        .where(
            shadows.c.purpose == ShadowPurpose.AUDIT.value,
            calls.c.policy_version == version,
            is_audited(calls),
            ~_suppressed_before(),
        )
        .order_by(trajectories.c.sequence, trajectories.c.id)
    )
    return Audits(
        fuses={fuse.tool: fuse for fuse in found},
        audited=tuple(
            Audited(
                tool=row.name,
                sequence=row.sequence,
                created_at=row.created_at,
                lost=_lost(row.outcome, row.score),
            )
            for row in connection.execute(query)
        ),
        now=database_time(connection),
    )


def _suppressed_before() -> ColumnElement[bool]:
    """Was an earlier turn of the trajectory suppressed, or let through for the audit?"""
    earlier, skipped = turns.alias("earlier"), calls.alias("skipped")
    return exists(
        select(earlier.c.id)
        .join(skipped, skipped.c.turn_id == earlier.c.id)
        .where(
            and_(
                earlier.c.trajectory_id == turns.c.trajectory_id,
                earlier.c.turn_index < turns.c.turn_index,
                skipped.c.action == Action.SUPPRESS.value,
                skipped.c.mode == Mode.ENFORCE.value,
                skipped.c.reason.in_(sorted(reason.value for reason in AUDITED)),
            )
        )
        .correlate(turns)
    )


def _lost(outcome: float | None, score: float | None) -> bool | None:
    if outcome is None or score is None:
        return None
    return outcome >= RIGHT > score


def _fuse(row: RowMapping) -> Fuse:
    values: dict[str, Any] = {**row, "state": FuseState(row["state"])}
    return Fuse(**values)

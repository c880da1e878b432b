"""Which stored calls the audit let through, as a condition in SQL."""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, and_

from entrogate.gate.reasons import Reason
from entrogate.types import Action, Mode


def is_audited(calls: FromClause) -> ColumnElement[bool]:
    """`Decision.is_audited` of the rows of ``calls``, or of an alias of it."""
    return and_(
        calls.c.mode == Mode.ENFORCE.value,
        calls.c.action == Action.SUPPRESS.value,
        calls.c.applied == Action.ALLOW.value,
        calls.c.reason != Reason.GATE_FAULT.value,  # stored with the propensity 1
    )

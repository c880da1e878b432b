"""Policies that decided, kept so that their decisions can be replayed, and which are in force."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from entrogate.gate.arms import Arm, Order
from entrogate.gate.schema import Policy
from entrogate.store import postgres
from entrogate.store.admin.audit import Deed, note_policies
from entrogate.store.schema import SCHEMA_VERSION, policies, policy_orders


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """What comes into force, and why: all of it is stored, or nothing."""

    policies: Sequence[Policy]  # to keep, so that their decisions can be replayed
    main: Deed
    trial: Deed | None  # None: no policy is on trial
    ordered: Sequence[Order] = ()
    ended: Sequence[Order] = ()  # orders that hold no longer


def remember_policy(
    connection: Connection, version: str, name: str, mode: str, content: str
) -> None:
    """Insert the policy unless its version is there: a version is a hash of the content."""
    known = select(policies.c.version).where(policies.c.version == version)
    if connection.execute(known).first() is None:
        row = {"version": version, "name": name, "mode": mode, "content": content}
        connection.execute(policies.insert(), row | {"created_at": time.time()})


def put_in_force(connection: Connection, change: PolicyChange) -> None:
    """Write a change inside the caller's transaction."""
    if postgres.is_postgres(connection):  # one gateway at a time, all of them when a file changes
        connection.execute(text("LOCK TABLE policy_orders IN SHARE ROW EXCLUSIVE MODE"))
    for policy in change.policies:
        content = policy.model_dump_json(exclude_unset=True)
        remember_policy(connection, policy.version, policy.name, policy.mode, content)
    for order in change.ended:  # not a later one, which another gateway may have taken
        same = policy_orders.c.ordered_at == order.ordered_at
        connection.execute(policy_orders.delete().where(policy_orders.c.arm == order.arm, same))
    for order in change.ordered:
        connection.execute(policy_orders.delete().where(policy_orders.c.arm == order.arm))
        row = {
            "arm": order.arm.value,
            "schema_version": SCHEMA_VERSION,
            "version": order.version,
            "share": order.share,
            "instead_of": order.instead_of,
            "ordered_at": order.ordered_at,
        }
        connection.execute(policy_orders.insert(), row)
    note_policies(connection, change.main, change.trial)


def read_orders(connection: Connection) -> dict[Arm, Order]:
    """What admins ordered, by arm."""
    rows = connection.execute(select(policy_orders).order_by(policy_orders.c.arm))
    orders = (
        Order(
            arm=Arm(row.arm),
            version=row.version,
            share=row.share,
            instead_of=row.instead_of,
            ordered_at=row.ordered_at,
        )
        for row in rows
    )
    return {order.arm: order for order in orders}

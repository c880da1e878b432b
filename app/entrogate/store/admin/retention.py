"""Retention: old trajectories go, whole and a few at a time, while gateways write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select, true, tuple_

from entrogate.store.database import Database
from entrogate.store.faults import translated
from entrogate.store.schema import commits, feedback, toolsets, trajectories, turns
from entrogate.store.transactions import Transactions

BATCH = 100
_PAGE = 5_000
_PATIENCE_SECONDS = 60.0

Place = tuple[float, str]  # created_at and id: the order in which trajectories are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """Which trajectories are old: nothing, no turn and no feedback, came at ``before`` or later.

    Those with an outcome stay with ``keep_outcomes``, those that are not ``spare`` are deleted.
    """

    before: float  # seconds since the epoch
    keep_outcomes: bool = False
    spare: Callable[[str], bool] = lambda _: False  # by trajectory id


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What is deleted so far (in a dry run: would be), and the old ones that were spared."""

    trajectories: int = 0
    turns: int = 0
    toolsets: int = 0
    spared: int = 0


def prune(
    database: Database,
    expiry: Expiry,
    *,
    dry_run: bool = False,
    progress: Callable[[Pruned], None] = lambda _: None,
) -> Pruned:
    """Delete what has expired, and the lists of tools that nothing refers to any more.

    Each batch is a transaction, followed by a rest as long as it took: writers get their turn.
    Raises `StoreError`; what was deleted by then stays deleted.
    """
    done = Pruned()
    writing = Transactions(database.writer, patience_seconds=_PATIENCE_SECONDS)
    try:
        for ids in _batches(database, expiry, done):
            if dry_run:
                _add(done, database.read(lambda c, ids=ids: _sizes(c, ids)))
            else:
                began = time.monotonic()
                with translated("cannot delete"):
                    _add(done, writing.run(lambda c, ids=ids: _delete(c, ids, expiry)))
                time.sleep(time.monotonic() - began)
            progress(done)
        if not dry_run:
            with translated("cannot delete"):
                done.toolsets = writing.run(_delete_toolsets)
                writing.run(_delete_commits)
    finally:
        writing.disconnect()
    return done


def _add(done: Pruned, sizes: Sequence[int]) -> None:
    done.trajectories += len(sizes)
    done.turns += sum(sizes)


def _batches(database: Database, expiry: Expiry, done: Pruned) -> Iterator[list[str]]:
    """Ids of old trajectories, the oldest first; counts those that are spared."""
    after: Place | None = None
    while True:
        page = database.read(lambda c, after=after: _expired(c, expiry, after))
        ids = [id_ for _, id_ in page if not expiry.spare(id_)]
        done.spared += len(page) - len(ids)
        for start in range(0, len(ids), BATCH):
            yield ids[start : start + BATCH]
        if len(page) < _PAGE:
            return
        after = page[-1]


def _expired(connection: Connection, expiry: Expiry, after: Place | None) -> list[Place]:
    place = tuple_(trajectories.c.created_at, trajectories.c.id)
    query = select(trajectories.c.created_at, trajectories.c.id).where(_is_old(expiry))
    if after is not None:
        query = query.where(place > after)
    query = query.order_by(trajectories.c.created_at, trajectories.c.id).limit(_PAGE)
    return [(row.created_at, row.id) for row in connection.execute(query)]


def _is_old(expiry: Expiry) -> ColumnElement[bool]:
    columns = trajectories.c
    said = exists().where(
        feedback.c.trajectory_id == columns.id, feedback.c.created_at >= expiry.before
    )
    # What was updated before was created before, and there is an index on that.
    old = and_(columns.created_at < expiry.before, columns.updated_at < expiry.before, ~said)
    return and_(old, columns.outcome.is_(None)) if expiry.keep_outcomes else old


def _sizes(connection: Connection, ids: Sequence[str]) -> list[int]:
    query = select(trajectories.c.n_turns).where(trajectories.c.id.in_(ids))
    return list(connection.execute(query).scalars())


def _delete(connection: Connection, ids: Sequence[str], expiry: Expiry) -> list[int]:
    """The numbers of turns of the trajectories that are deleted, with all that hangs on them.

    A trajectory that another session is writing to is not waited for. The others are looked at
    again under the lock: a turn or an outcome may have come since they were listed.
    """
    columns = trajectories.c
    free = select(columns.id).where(columns.id.in_(ids)).order_by(columns.id)
    locked = connection.execute(free.with_for_update(skip_locked=True)).scalars().all()
    query = delete(trajectories).where(columns.id.in_(locked), _is_old(expiry))
    return list(connection.execute(query.returning(columns.n_turns)).scalars())


def _delete_toolsets(connection: Connection) -> int:
    used = exists().where(turns.c.toolset_id == toolsets.c.id)
    return connection.execute(delete(toolsets).where(~used)).rowcount


def _delete_commits(connection: Connection) -> int:
    """Those before the oldest that a trajectory names; the numbers are not given again."""
    oldest = connection.execute(select(func.min(trajectories.c.sequence))).scalar()
    unnamed = true() if oldest is None else commits.c.sequence < oldest
    return connection.execute(delete(commits).where(unnamed)).rowcount

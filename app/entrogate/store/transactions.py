"""Transactions on one connection that is kept, tried again where that helps.

A transaction is tried again when another one was in the way, and when the server or the connection
went away. Where the connection broke in the commit, the server is asked what became of it, so
nothing is written twice and nothing is called lost that is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from entrogate.store import postgres
from entrogate.store.faults import is_conflict, is_locked, is_lost

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsure:
    """A transaction whose commit was not answered, and what it is worth if it went through."""

    id: str
    result: Any


class Transactions:
    """Belongs to one thread. ``patience_seconds`` bounds the tries of one transaction.

    After a transaction has failed because the server or a lock was not available, the next ones are
    tried once each until one goes through: a queue does not wait for the patience of each entry.
    """

    def __init__(self, engine: Engine, *, patience_seconds: float) -> None:
        self._engine = engine
        self._patience = patience_seconds
        self._on_postgres = postgres.is_postgres(engine)
        self._connection: Connection | None = None
        self._is_down = False

    def run(self, work: Callable[[Connection], T], *, until: float = math.inf) -> T:
        """What ``work`` returns, committed. Raises what it or the database raised in the end.

        It is tried once at least, and again no later than ``until``, by the monotonic clock.
        """
        patience = 0.0 if self._is_down else self._patience
        deadline = min(until, time.monotonic() + patience)
        pause = _FIRST_PAUSE_SECONDS
        looked_again = False
        unsure: _Unsure | None = None
        while True:
            try:
                connection = self._connected()
                if unsure is not None:
                    status = self._status(connection, unsure)
                    if status == "committed":
                        return unsure.result
                    if status == "in progress":  # the server has not noticed yet
                        raise TimeoutError("the commit has not been answered")
                    unsure = None
                with connection.begin():
                    id_ = postgres.transaction_id(connection) if self._on_postgres else None
                    result = work(connection)
                    if id_ is not None:
                        unsure = _Unsure(id=id_, result=result)
                self._is_down = False
                return result
            except Exception as error:
                lost = is_lost(error)
                self.disconnect(lost=lost)
                if is_conflict(error) and not looked_again:
                    looked_again = True
                    continue
                again = lost or is_locked(error) or isinstance(error, TimeoutError)
                if not again or time.monotonic() >= deadline:
                    self._is_down = again
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def disconnect(self, *, lost: bool = False) -> None:
        """Give the connection back; the pool rolls back what it left behind."""
        if self._connection is not None:
            if lost:
                self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _status(self, connection: Connection, unsure: _Unsure) -> str:
        with connection.begin():
            return postgres.transaction_status(connection, unsure.id)

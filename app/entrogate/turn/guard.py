"""The one boundary around what Entrogate adds to an answer.

Statistics, decisions, recording and traces run inside it. A fault in any of them is logged and
counted; the answer goes on without it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from entrogate.observe.metrics import Metrics

_log = logging.getLogger("entrogate.turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Of one turn."""

    metrics: Metrics
    request_id: str

    def around(self, part: str) -> _Around:
        """A ``with`` block that a fault ends, and nothing else; what follows it runs."""
        return _Around(self, part)

    def report(self, part: str, error: BaseException) -> None:
        """Count and log a fault of ``part`` that was caught elsewhere."""
        self.metrics.record_gate_fault()
        _log.error("turn.fault request=%s part=%s", self.request_id, part, exc_info=error)

    def failed_open(self, what: str) -> None:
        """Count and log that a decision could not be carried out and the call went through."""
        self.metrics.record_gate_fault()
        _log.warning("gate.failed_open request=%s %s", self.request_id, what)


class _Around:
    __slots__ = ("_guard", "_part")

    def __init__(self, guard: Guard, part: str) -> None:
        self._guard = guard
        self._part = part

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        """Exceptions end here; what is none (a cancellation, an interrupt) goes on."""
        if not isinstance(error, Exception):
            return False
        self._guard.report(self._part, error)
        return True

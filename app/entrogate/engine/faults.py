"""Counts what goes wrong in our part of the engine, and says so in vLLM's log now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("entrogate.engine")


class Faults:
    """Of one worker. ``refused``: malformed arguments; ``raised``: exceptions that were caught."""

    def __init__(self) -> None:
        self.refused = 0
        self.raised = 0

    def refuse(self, why: object) -> None:
        """The arguments of a request are not what the plugin takes: it is not captured."""
        self.refused += 1
        if _is_telling(self.refused):
            _log.warning("entrogate: %d requests not captured, the last: %s", self.refused, why)

    def guard(
        self, act: Callable[..., Any], *arguments: Any, undo: Callable[[], object], **named: Any
    ) -> Any:
        """What ``act`` returns; None if it raised: then ``undo`` has ended what it did.

        The one place where the plugin takes any exception: vLLM's engine would end by it.
        """
        try:
            return act(*arguments, **named)
        except Exception as error:  # noqa: BLE001
            self.raised += 1
            if _is_telling(self.raised):
                where = getattr(act, "__qualname__", "the plugin")
                _log.error("entrogate: fault %d, in %s", self.raised, where, exc_info=error)
            undo()
            return None


def _is_telling(count: int) -> bool:
    """Powers of two: the first ones are told, and a flood is not."""
    return count & (count - 1) == 0

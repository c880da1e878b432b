"""A refresh that is done again and again: a fault ends one round of it, and is told once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from entrogate.errors import EntrogateError

_log = logging.getLogger("entrogate.serve")


class Refreshing:
    """Supervises rounds of ``refresh``; ``event`` is the log's word for one that failed."""

    def __init__(self, refresh: Callable[[], Awaitable[None]], *, event: str) -> None:
        self._refresh = refresh
        self._event = event
        self._fault = ""  # of the last round

    async def round(self) -> None:
        """One round. What it raises is logged; the same as the round before, not again."""
        try:
            await self._refresh()
        except EntrogateError as error:
            if str(error) != self._fault:
                _log.warning("%s %s", self._event, error)
            self._fault = str(error)
        except Exception:  # noqa: BLE001  (supervises its task: the next round may do better)
            _log.exception(self._event)
        else:
            self._fault = ""

"""A repeated refresh: a fault ends one round only, and is logged once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from entrogate.errors import EntrogateError

_log = logging.getLogger("entrogate.serve")


class Refreshing:
    """Supervises rounds of ``refresh``; ``event`` is logged when a round fails."""

    def __init__(self, refresh: Callable[[], Awaitable[None]], *, event: str) -> None:
        self._refresh = refresh
        self._event = event
        self._fault = ""  # of the last round

    async def round(self) -> None:
        """Run once. Errors are logged, but not the same error twice in a row."""
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

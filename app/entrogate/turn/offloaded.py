"""Work over what a client sent that grows with its size: off the event loop where it is large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import TypeVar

_Given = TypeVar("_Given", bound=Sized)
_Made = TypeVar("_Made")

LARGE_BODY_BYTES = 2**18
LARGE_HISTORY_MESSAGES = 1000


def large_history(size_bytes: int) -> int:
    """From how many messages on a history is large, in a body of ``size_bytes``: any, in a large
    one."""
    return LARGE_HISTORY_MESSAGES if size_bytes < LARGE_BODY_BYTES else 0


async def worked_out(
    work: Callable[[_Given], _Made], given: _Given, *, large: int = LARGE_BODY_BYTES
) -> _Made:
    """``work(given)``; in a thread where ``given`` has at least ``large`` items or bytes.

    A thread costs more than a small body does. Raises what ``work`` raises.
    """
    if len(given) < large:
        return work(given)
    return await asyncio.to_thread(work, given)

"""Reading all of something, some of it at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from entrogate.store.database import Database

Found = TypeVar("Found")
Place = TypeVar("Place")


def pages(
    database: Database,
    read: Callable[[Connection, Place, int], Sequence[Found]],
    *,
    start: Place,
    place: Callable[[Found], Place],
    size: int,
) -> Iterator[Found]:
    """All that ``read`` finds after ``start``, in its order; no connection is held in between.

    ``read`` gets where to go on (the ``place`` of the last one) and how many it may find. Blocks.
    """
    after = start
    while True:
        with database.reading() as connection:
            found = read(connection, after, size)
        yield from found
        if len(found) < size:
            return
        after = place(found[-1])

"""Tokens of a trajectory in slices: what one page shows, however long the whole is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, select

from entrogate.store.codec import unpack_floats, unpack_ints
from entrogate.store.schema import turns


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSlice:
    """Tokens ``start`` to ``stop`` of the turn ``turn_id``."""

    turn_id: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicedTokens:
    """Arrays of one length; entropies in nats, None where nothing is known."""

    start: int
    token_ids: Sequence[int]
    entropy_lower: Sequence[float | None]
    entropy_upper: Sequence[float | None]


def read_token_slices(
    connection: Connection, slices: Sequence[TokenSlice]
) -> dict[str, SlicedTokens]:
    """The tokens of these slices, one for each turn at most, by the turn's id."""
    columns = (turns.c.id, turns.c.token_ids, turns.c.entropy_lower, turns.c.entropy_upper)
    by_id = {each.turn_id: each for each in slices}
    found: dict[str, SlicedTokens] = {}
    for row in connection.execute(select(*columns).where(turns.c.id.in_(by_id))):
        wanted = by_id[row.id]
        ids = unpack_ints(row.token_ids)[wanted.start : wanted.stop].tolist()
        lower = _floats(row.entropy_lower, wanted, len(ids))
        upper = row.entropy_upper
        found[row.id] = SlicedTokens(
            start=wanted.start,
            token_ids=ids,
            entropy_lower=lower,
            entropy_upper=lower if upper is None else _floats(upper, wanted, len(ids)),
        )
    return found


def _floats(blob: bytes | None, wanted: TokenSlice, count: int) -> Sequence[float | None]:
    if blob is None:
        return [None] * count
    values = unpack_floats(blob)[wanted.start : wanted.stop]
    unknown = np.isnan(values)
    return [None if nan else v for v, nan in zip(values.tolist(), unknown.tolist(), strict=True)]

"""Stored token arrays as the lists of ``/v1/trajectories``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Row

from entrogate.store.codec import unpack_floats, unpack_ints


def token_lists(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """The arrays of a row of ``turns`` or ``shadows``, by name."""
    lower = _floats(row.entropy_lower)
    return {
        "token_ids": unpack_ints(row.token_ids).tolist(),
        "logprobs": _floats(row.logprobs),
        "entropy_lower": lower,
        "entropy_upper": lower if row.entropy_upper is None else _floats(row.entropy_upper),
        "margin": _floats(row.margin),
        "tail_mass": _floats(row.tail_mass),
        "p_tool_call": _floats(row.p_tool_call),
    }


def _floats(blob: bytes) -> list[float | None]:
    """JSON knows no nan: it becomes None."""
    return [None if np.isnan(value) else float(value) for value in unpack_floats(blob)]

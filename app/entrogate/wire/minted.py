"""The form of the call ids that the gateway makes up, and the time that stands in them.

``call_eg``, then 24 hexadecimal digits: 12 of milliseconds since the epoch, 12 random ones. A
client may write what it likes there, so a time is a hint about the client's own results and nothing
else.
"""

from __future__ import annotations

import re

CALL_PREFIX = "call_eg"
RANDOM_BYTES = 6
_MINTED = re.compile(CALL_PREFIX + r"([0-9a-f]{12})[0-9a-f]{12}")
_LARGEST = 2**48 - 1
_EARLIEST_SECONDS = 1_767_225_600.0  # 2026-01-01: no id held a time before


def minted_call(at_seconds: float, random: bytes) -> str:
    """The id of a call proposed ``at_seconds`` since the epoch; ``random`` are 6 bytes."""
    milliseconds = min(max(int(at_seconds * 1000), 0), _LARGEST)
    return f"{CALL_PREFIX}{milliseconds:012x}{random.hex()}"


def is_minted(call_id: str) -> bool:
    """Does ``call_id`` have the form of the ids that the gateway makes up?"""
    return _MINTED.fullmatch(call_id) is not None


def minted_at(call_id: str) -> float | None:
    """When the call of this id was proposed, in seconds since the epoch; None where it is unknown.

    Ids of earlier versions are random where the time stands now. One in 10,000 of them seems to
    hold a time since 2026, and one in three million one of a given day.
    """
    found = _MINTED.fullmatch(call_id)
    seconds = None if found is None else int(found[1], 16) / 1000
    return None if seconds is None or seconds < _EARLIEST_SECONDS else seconds

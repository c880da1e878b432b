"""Random numbers that belong to something: drawn by a hash, so everyone draws the same."""

from __future__ import annotations

import hashlib

_BITS = 53  # of a float: more would round the largest hashes up to 1


def unit_draw(key: bytes, *, person: bytes = b"") -> float:
    """A number in [0, 1) for ``key``; independent for different keys, and for each ``person``."""
    digest = hashlib.blake2b(key, digest_size=8, person=person).digest()
    return (int.from_bytes(digest, "little") >> (64 - _BITS)) / 2.0**_BITS

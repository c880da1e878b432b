"""Whether a client lets its turn be recorded: ``store: false`` in the body, or a header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrogate.errors import RequestError

RECORD_HEADER = "x-entrogate-record"
_NO = frozenset({"false", "f", "no", "n", "off", "0"})  # as pydantic, and so vLLM, reads a flag


def allows_recording(body: Mapping[str, Any]) -> bool:
    """What the field ``store`` says; a request without it is recorded."""
    said = body.get("store")
    if isinstance(said, str):
        return said.lower() not in _NO
    return said is None or said != 0  # False is 0


def is_recorded(allowed: bool, headers: Mapping[str, str]) -> bool:
    """``allowed`` by the body, unless the header says otherwise. Raises RequestError."""
    said = headers.get(RECORD_HEADER)
    if said is None:
        return allowed
    if said not in ("none", "full"):
        raise RequestError(f"{RECORD_HEADER} is {said!r}; want none or full", param=RECORD_HEADER)
    return said == "full"

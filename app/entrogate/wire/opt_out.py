"""Whether a client lets its turn be recorded: ``store: false`` in the body, or a header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrogate.errors import RequestError

RECORD_HEADER = "x-entrogate-record"
_NO = (False, "false", "False", "FALSE", "0", "no", "off")  # False == 0


def allows_recording(body: Mapping[str, Any]) -> bool:
    """What the field ``store`` says; a request without it is recorded."""
    return body.get("store") not in _NO


def is_recorded(allowed: bool, headers: Mapping[str, str]) -> bool:
    """``allowed`` by the body, unless the header says otherwise. Raises RequestError."""
    said = headers.get(RECORD_HEADER)
    if said is None:
        return allowed
    if said not in ("none", "full"):
        raise RequestError(f"{RECORD_HEADER} is {said!r}; want none or full", param=RECORD_HEADER)
    return said == "full"

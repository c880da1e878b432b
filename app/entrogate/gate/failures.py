"""Which results of tools are none: errors, and what a client wrote where a result had been.

An error is what says so itself, or begins as errors do.

The list of beginnings is short on purpose. A result that is wrongly taken for an error costs one
call that is made again; an error that is not recognised is replayed like any other result.
"""

from __future__ import annotations

import re
from typing import Any, cast

import orjson

_LONGEST_JSON = 2**20  # characters
_FLAGS = ("isError", "is_error")
_BEGINS = re.compile(
    r"""\s*(?:
        \[?(?:error|exception|traceback)\b                    # Error: …, ERROR 404, Traceback (most
        | (?-i: (?:[A-Za-z_]\w{0,99}\.){0,9} [A-Za-z_]\w{0,99} (?:Error|Exception) )\s*:
        | an\ error\ occurred\b
        | <(?:tool_use_)?error>
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_LONGEST_BEGINNING = 2048
_CLEARED = "[Old tool result content cleared"


def is_failure(result: str) -> bool:
    """Was ``result``, the text of a tool's result, an error?

    It is one where it is a JSON object with a true ``isError`` or ``is_error`` or an ``error`` that
    is not empty (null, false, 0, "", [], {}), or where it begins with "Error", "Exception",
    "Traceback" or "An error occurred", ``<error>`` or ``<tool_use_error>``, all in any case, or
    with the name of an exception and a colon (``KeyError:``, ``java.io.IOException:``).
    """
    if _BEGINS.match(result[:_LONGEST_BEGINNING]):
        return True
    if result.lstrip()[:1] != "{" or len(result) > _LONGEST_JSON:
        return False
    try:
        said = orjson.loads(result)
    except orjson.JSONDecodeError:
        return False
    stated = cast("dict[str, Any]", said)  # it begins with a brace
    return bool(stated.get("error")) or any(stated.get(flag) is True for flag in _FLAGS)


def is_cleared(result: str) -> bool:
    """Did the client drop ``result`` to save room, and leave the usual note in its place?"""
    return result.startswith(_CLEARED)

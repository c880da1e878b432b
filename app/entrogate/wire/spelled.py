"""Tool calls that a model spells out as text, although the token that opens one was masked."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any, cast

_MARKS = ("<tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<|python_tag|>", "<function=")
_INVOKED = re.compile(r"<invoke name=")
_TRIED = 16  # places at which a JSON object may begin: the work stays linear in the text
_decoder = json.JSONDecoder()


def spells_call(text: str, tools: Collection[str]) -> bool:
    """Is ``text`` (a part of it) a call of one of ``tools``, in a form that parsers know?

    Those are the markers of tool parsers, a JSON object with the name and the arguments of a call
    (hermes, llama3_json, mistral), and a text that is one Python call (pythonic). Prose that only
    names a tool is no call.
    """
    if any(mark in text for mark in _MARKS) or _INVOKED.search(text):
        return True
    return bool(tools) and (_has_object(text, tools) or _is_python_call(text, tools))


def _has_object(text: str, tools: Collection[str]) -> bool:
    at = text.find("{")
    for _ in range(_TRIED):
        if at < 0:
            return False
        found, end = None, at + 1
        with suppress(ValueError, RecursionError):
            found, end = _decoder.raw_decode(text, at)
        if _is_call(found, tools):
            return True
        at = text.find("{", end)
    return False


def _is_call(found: Any, tools: Collection[str]) -> bool:
    if not isinstance(found, dict):
        return False
    value = cast("dict[str, Any]", found)
    function = value.get("function")
    if isinstance(function, dict):
        return _is_call(function, tools)
    name = value.get("name", function)
    return (
        isinstance(name, str) and name in tools and ("arguments" in value or "parameters" in value)
    )


def _is_python_call(text: str, tools: Collection[str]) -> bool:
    whole = text.strip().removeprefix("[").removesuffix("]").strip()
    name, opened, rest = whole.partition("(")
    return bool(opened) and name.strip() in tools and rest.endswith(")")

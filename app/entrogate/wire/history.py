"""The message history of a request: what was called before, and a fingerprint to link by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCall:
    """A call in the history, with its result when the client sent one."""

    call_id: str
    name: str
    key: bytes  # of name and canonical arguments
    result: str | None
    turn: int  # index of its assistant message


def call_key(name: str, arguments: str) -> bytes:
    """Identity of a call: its name and its arguments whatever their key order or spacing."""
    try:
        canonical = orjson.dumps(orjson.loads(arguments or "{}"), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        canonical = arguments.encode(errors="surrogatepass")
    return name.encode(errors="surrogatepass") + b"\0" + canonical


def last_called(earlier: Sequence[EarlierCall]) -> set[str]:
    """The tools that the last assistant message with calls called."""
    return {call.name for call in earlier if call.turn == earlier[-1].turn}


def earlier_calls(messages: list[dict[str, Any]]) -> list[EarlierCall]:
    """All tool calls of the history in order, joined with their results by id."""
    results = {
        str(m.get("tool_call_id")): text_of(m.get("content"))
        for m in messages
        if m.get("role") == "tool"
    }
    calls: list[EarlierCall] = []
    for turn, message in enumerate(messages):
        for call in _tool_calls(message):
            name, arguments = _function(call)
            call_id = str(call.get("id"))
            calls.append(
                EarlierCall(
                    call_id=call_id,
                    name=name,
                    key=call_key(name, arguments),
                    result=results.get(call_id),
                    turn=turn,
                )
            )
    return calls


def last_assistant(messages: list[dict[str, Any]]) -> int | None:
    """Index of the last assistant message that is followed by something."""
    for index in range(len(messages) - 2, -1, -1):
        if messages[index].get("role") == "assistant":
            return index
    return None


def fingerprint(messages: list[dict[str, Any]]) -> bytes:
    """blake2b-128 of what the messages say, without ids and reasoning (clients drop these)."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        calls = [_function(call) for call in _tool_calls(message)]
        digest.update(orjson.dumps([message.get("role"), text_of(message.get("content")), calls]))
    return digest.digest()


def text_of(content: object) -> str:
    """The text of a message's content: a string, a list of parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()


def _function(call: dict[str, Any]) -> tuple[str, str]:
    function: dict[str, Any] = call.get("function") or {}
    return str(function.get("name")), str(function.get("arguments") or "")


def _tool_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if message.get("role") != "assistant" or not isinstance(calls, list):
        return []
    return [call for call in calls if isinstance(call, dict)]  # pyright: ignore[reportUnknownVariableType]

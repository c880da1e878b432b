"""Chat answers as servers other than vLLM write them, made what vLLM would have written.

Used where an answer cannot be read as it is. What is said (text, reasoning, calls, how it ended) is
kept, in the form that the API documents; a number that cannot be one (a log-prob that is not a
number, a token id below 0) becomes null, so that the capture shows a gap and the answer goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import msgspec

from entrogate.errors import UpstreamProtocol, no_chunk
from entrogate.wire.body import to_json
from entrogate.wire.chunks import ChatLogprobs, Index, TokenId
from entrogate.wire.said import Json, SaidUsage

_LATEST_SECONDS = 2.0**53
_TEXT_KINDS = ("text", "output_text", "refusal")
_THOUGHT_KINDS = ("thinking", "reasoning")


def uniform(data: bytes) -> bytes:
    """A chunk or a body as vLLM would write it.

    Raises UpstreamProtocol for what is no JSON object, or says something that no field can hold.
    """
    try:
        payload: Any = json.loads(data.decode(), parse_constant=_no_number)
        if isinstance(payload, dict):
            return to_json(_uniform(cast("Json", payload)))
    except (ValueError, TypeError, RecursionError) as error:
        raise no_chunk(error) from None
    raise UpstreamProtocol("the upstream sent an event that is no object")


def _no_number(_: str) -> None:
    """NaN and the infinities, which some servers write although JSON has none."""


def _uniform(payload: Json) -> Json:
    for name in ("id", "model"):
        if name in payload and not isinstance(payload[name], str):
            payload[name] = "" if payload[name] is None else str(payload[name])
    created = payload.get("created")
    if "created" in payload and type(created) is not int:
        payload["created"] = 0
        if isinstance(created, float) and 0 <= created < _LATEST_SECONDS:
            payload["created"] = int(created)
    _null_unless(payload, "usage", SaidUsage)
    _null_unless(payload, "prompt_token_ids", list[TokenId])
    _null_unless(payload, "kv_transfer_params", dict[str, Any])
    if payload.get("choices") is None:
        payload.pop("choices", None)
    choices = payload.get("choices")
    for position, choice in enumerate(cast("list[object]", choices or [])):
        if isinstance(choice, dict):
            _make_choice(cast("Json", choice), position)
    return payload


def _make_choice(choice: Json, position: int) -> None:
    choice["index"] = _index(choice.get("index"), position)
    _null_unless(choice, "logprobs", ChatLogprobs)
    _null_unless(choice, "token_ids", list[TokenId])
    _null_unless(choice, "stop_reason", int | str)
    choice["finish_reason"] = choice.get("finish_reason") or None
    if choice.get("message") is None:
        choice.pop("message", None)
        if choice.get("delta") is None:
            choice["delta"] = {}
    for name in ("delta", "message"):
        if isinstance(choice.get(name), dict):
            _make_message(choice[name])


def _make_message(message: Json) -> None:
    if not isinstance(message.get("role"), str):
        message.pop("role", None)
    content = message.get("content")
    if isinstance(content, list | dict):
        parts = cast("list[Any]", content if isinstance(content, list) else [content])
        thought = "".join(map(_thought_of, parts))
        said = "".join(map(_text_of, parts))
        message["content"] = said if said or not thought else None
        if thought and not message.get("reasoning"):
            message["reasoning"] = thought
    calls: Any = message.get("tool_calls")
    if isinstance(calls, dict):
        calls = [cast("Json", calls)]
    if isinstance(calls, list):
        pieces = [_call(cast("Json", c)) for c in cast("list[Any]", calls) if isinstance(c, dict)]
        message["tool_calls"] = pieces
        if not pieces:
            del message["tool_calls"]


def _call(call: Json) -> Json:
    index = _index(call.get("index"), -1)
    call.pop("index", None)
    if index >= 0:
        call = {"index": index, **call}
    if call.get("id") is not None and not isinstance(call["id"], str):
        call["id"] = str(call["id"])
    function = call.get("function")
    if not isinstance(function, dict):
        own = {name: call.pop(name) for name in ("name", "arguments") if name in call}
        call.pop("function", None)
        if own:
            call["function"] = own
    arguments: Any = call.get("function", {}).get("arguments")
    if isinstance(arguments, dict | list):
        call["function"]["arguments"] = to_json(cast("object", arguments)).decode()
    return call


def _index(value: Any, otherwise: int) -> int:
    """``value`` as an index; ``otherwise`` where it is missing or none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 6:
        value = int(value)
    try:
        return msgspec.convert(value, Index)
    except msgspec.ValidationError:
        return otherwise


def _text_of(part: Any) -> str:
    """The text of one content part. Raises ValueError for a part that is none of a text."""
    return _of_kind(part, _TEXT_KINDS, _plain)


def _thought_of(part: Any) -> str:
    return _of_kind(part, _THOUGHT_KINDS, _thought)


def _of_kind(part: Any, kinds: tuple[str, ...], read: Callable[[Json], str]) -> str:
    if isinstance(part, str):
        return part if kinds is _TEXT_KINDS else ""
    kind = cast("Json", part).get("type", "text") if isinstance(part, dict) else None
    if kind not in (*_TEXT_KINDS, *_THOUGHT_KINDS):
        raise ValueError(f"a content part of type {str(kind)[:40]!r}; want text or thinking")
    return read(cast("Json", part)) if kind in kinds else ""


def _plain(part: Json) -> str:
    said: Any = part.get("text", part.get("refusal"))
    if isinstance(said, dict):
        said = cast("Json", said).get("value")
    if not isinstance(said, str):
        raise TypeError("a content part without a text")
    return said


def _thought(part: Json) -> str:
    """Of one string, or of parts with texts, as Mistral's servers write thinking."""
    said: Any = part.get("thinking", part.get("text", part.get("reasoning", "")))
    return "".join(map(_text_of, cast("list[Any]", said))) if isinstance(said, list) else str(said)


def _null_unless(holder: Json, name: str, kind: Any) -> None:
    """A field that has no value of ``kind`` becomes null."""
    if holder.get(name) is None:
        return
    try:
        msgspec.convert(holder[name], kind)
    except msgspec.ValidationError:
        holder[name] = None

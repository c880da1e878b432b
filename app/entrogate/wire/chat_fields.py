"""The kinds of what the gateway reads of a chat body: checked once, at parse.

A field that is read here is read exactly as vLLM reads it, with pydantic's lax conversions
(``"stream": "true"`` streams, ``"n": "3"`` is 3). Of everything else vLLM is the judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from entrogate.errors import RequestError
from entrogate.wire.body import to_json

Json = dict[str, Any]

MAX_CHOICES = 1_024
MAX_MESSAGES = 20_000
MAX_CALLS = 20_000  # in the message history
MAX_TOOLS = 4_096
MAX_METADATA = 128  # entries
MAX_METADATA_CHARACTERS = 16_384  # of one name and its value

_TEXT = (TypeAdapter[Any](str | None), "a string")
_FLAG = (TypeAdapter[Any](bool | None), "true or false")
_WHOLE = (TypeAdapter[Any](int | None), "a whole number")
_FIELDS: dict[str, tuple[TypeAdapter[Any], str]] = {
    "stream": _FLAG,
    "logprobs": _FLAG,
    "return_token_ids": _FLAG,
    "include_reasoning": _FLAG,
    "n": _WHOLE,
    "top_logprobs": _WHOLE,
    "max_tokens": _WHOLE,
    "max_completion_tokens": _WHOLE,
    "min_tokens": _WHOLE,
    "model": _TEXT,
    "request_id": _TEXT,
    "logit_bias": (TypeAdapter[Any](dict[str, float] | None), "an object of numbers"),
}
# vLLM looks at what was sent before it converts: "false" counts as a wish there, true as none.
_SENT_AS_IT_CAME = "logprobs"


def flag(value: object, param: str) -> bool | None:
    """``value`` as vLLM reads a flag. Raises RequestError for what is none."""
    return cast("bool | None", _converted(value, param, *_FLAG))


def whole_number(value: object, param: str) -> int | None:
    """``value`` as vLLM reads a whole number. Raises RequestError for what is none."""
    return cast("int | None", _converted(value, param, *_WHOLE))


def converted_fields(body: Json) -> tuple[Json, Json]:
    """The fields that are read, converted; and the body to send on, which says the same.

    Raises RequestError that names the first field of a wrong kind.
    """
    read: Json = {}
    sent: Json = {}
    for name, (kind, wanted) in _FIELDS.items():
        if name not in body:
            continue
        value = body[name]
        if name == "top_logprobs" and isinstance(value, str):
            raise _wrong(name, "a whole number", value)  # stricter in vLLM than other numbers
        read[name] = _converted(value, name, kind, wanted)
        if name != _SENT_AS_IT_CAME and (
            type(read[name]) is not type(value) or read[name] != value
        ):
            sent[name] = read[name]
    if not sent:
        return read, body
    changed = {**body, **sent}
    if sent.get("stream") is False:
        changed.pop("stream_options", None)  # vLLM lets "false" have them, but not false
    return read, changed


def stream_options(body: Json) -> Json:
    """The options of a stream, with ``include_usage`` as a flag."""
    options = optional_object(body, "stream_options") or {}
    usage = flag(options.get("include_usage"), "stream_options.include_usage")
    return {**options, "include_usage": bool(usage)}


def optional_object(holder: Mapping[str, Any], name: str, param: str | None = None) -> Json | None:
    """The object ``name`` of ``holder``, None where it is absent or null."""
    value = holder.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(param or name, "an object", value)
    return cast("Json | None", value)


def check_tool_choice(body: Json) -> None:
    """RequestError unless it is a word, an object or absent."""
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise _wrong("tool_choice", "a string or an object", choice)


def check_tools(body: Json) -> None:
    """RequestError for tools that are no list of objects with functions in them."""
    if body.get("tools") is None:
        return
    tools = _objects(body["tools"], "tools", MAX_TOOLS)
    for position, tool in enumerate(tools):
        where = f"tools[{position}].function"
        function = optional_object(tool, "function", where)
        if function is not None:
            _optional_text(function, "name", where)


def checked_messages(body: Json) -> list[Json]:
    """The messages of a chat body. Raises RequestError that names the part of a wrong kind."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) for message in cast("list[Any]", messages)
    ):
        raise RequestError("messages must be a list of objects", param="messages")
    checked = _objects(cast("list[Any]", messages), "messages", MAX_MESSAGES)
    n_calls = 0
    for position, message in enumerate(checked):
        where = f"messages[{position}]"
        _optional_text(message, "role", where)
        _optional_text(message, "tool_call_id", where)
        _check_content(message.get("content"), f"{where}.content")
        if message.get("tool_calls") is not None:
            n_calls += _check_calls(message["tool_calls"], f"{where}.tool_calls")
    if n_calls > MAX_CALLS:
        raise _too_many("messages", n_calls, MAX_CALLS, "tool calls")
    return checked


def metadata_of(body: Json) -> dict[str, str] | None:
    """The metadata as texts: a value that is no string stands as its JSON."""
    given = optional_object(body, "metadata")
    if given is None:
        return None
    if len(given) > MAX_METADATA:
        raise _too_many("metadata", len(given), MAX_METADATA, "entries")
    texts = {k: v if isinstance(v, str) else to_json(v).decode() for k, v in given.items()}
    longest = max((len(k) + len(v) for k, v in texts.items()), default=0)
    if longest > MAX_METADATA_CHARACTERS:
        raise RequestError(
            f"metadata: an entry of {longest} characters; at most {MAX_METADATA_CHARACTERS}",
            param="metadata",
        )
    return texts


def _check_content(content: object, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _wrong(where, "a string or a list of parts", content)
    for position, part in enumerate(cast("list[object]", content)):
        if isinstance(part, dict):
            _optional_text(cast("Json", part), "text", f"{where}[{position}]")
        elif not isinstance(part, str):
            raise _wrong(f"{where}[{position}]", "an object", part)


def _check_calls(calls: object, where: str) -> int:
    for position, call in enumerate(_objects(calls, where, MAX_CALLS)):
        here = f"{where}[{position}]"
        _optional_text(call, "id", here)
        function = optional_object(call, "function", f"{here}.function")
        if function is not None:
            _optional_text(function, "name", f"{here}.function")
            _optional_text(function, "arguments", f"{here}.function")
    return len(cast("list[object]", calls))


def _objects(value: object, param: str, limit: int) -> list[Json]:
    if not isinstance(value, list):
        raise _wrong(param, "a list of objects", value)
    items = cast("list[object]", value)
    if len(items) > limit:
        raise _too_many(param, len(items), limit, "entries")
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise _wrong(f"{param}[{position}]", "an object", item)
    return cast("list[Json]", items)


def _optional_text(holder: Json, name: str, where: str) -> None:
    value = holder.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(f"{where}.{name}", "a string", value)


def _converted(value: object, param: str, kind: TypeAdapter[Any], wanted: str) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError:
        raise _wrong(param, wanted, value) from None


def _wrong(param: str, wanted: str, value: object) -> RequestError:
    found = to_json(value).decode()
    shown = found if len(found) <= 60 else found[:57] + "..."
    return RequestError(f"{param}: want {wanted}; found {shown}", param=param)


def _too_many(param: str, n: int, limit: int, what: str) -> RequestError:
    return RequestError(f"{param}: {n} {what}; at most {limit}", param=param)

"""Reading the bodies of other APIs field by field, with errors that name the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from entrogate.errors import RequestError
from entrogate.wire.chat_fields import MAX_MESSAGES, flag

Json = dict[str, Any]

# What vLLM's chat takes beyond OpenAI's own fields: every door passes it on as it is.
VLLM_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "ec_transfer_params",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "kv_transfer_params",
        "length_penalty",
        "logit_bias",
        "media_io_kwargs",
        "min_p",
        "min_tokens",
        "mm_processor_kwargs",
        "presence_penalty",
        "priority",
        "repetition_detection",
        "repetition_penalty",
        "seed",
        "session_id",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "structured_outputs",
        "thinking_token_budget",
        "top_k",
        "truncate_prompt_tokens",
        "truncation_side",
        "vllm_xargs",
        "watermarking",
    }
)


def wrong(param: str, what: str) -> RequestError:
    """The error for a field: ``what`` says what was wrong and what would be right."""
    return RequestError(f"{param}: {what}", param=param)


def objects(value: object, param: str) -> list[Json]:
    """``value`` as a list of objects, which it must be."""
    if not isinstance(value, list):
        raise wrong(param, "want a list of objects")
    if len(cast("list[object]", value)) > MAX_MESSAGES:
        raise wrong(param, f"{len(cast('list[object]', value))} entries; at most {MAX_MESSAGES}")
    for position, item in enumerate(cast("list[object]", value)):
        if not isinstance(item, dict):
            raise wrong(f"{param}[{position}]", "want an object")
    return cast("list[Json]", value)


def object_of(value: object, param: str) -> Json:
    """``value`` as an object. Raises RequestError that names ``param`` for another kind."""
    if not isinstance(value, dict):
        raise wrong(param, "want an object")
    return cast("Json", value)


def text(holder: Mapping[str, Any], name: str, param: str) -> str:
    """The string ``name`` of ``holder``, which must be there; ``param`` is where that stands."""
    value = holder.get(name)
    if not isinstance(value, str):
        raise wrong(f"{param}.{name}" if param else name, "want a string")
    return value


def passed_on(
    body: Mapping[str, Any], fields: Mapping[str, str], known: Iterable[str], api: str
) -> Json:
    """The fields that go on under chat's names; null means absent.

    ``fields``: name here → name in chat; ``known`` are read elsewhere or documented as ignored. Any
    other field is refused by name, so that nothing is dropped unseen.
    """
    chat: Json = {}
    unread = frozenset(known)
    for name, value in body.items():
        if name in unread or value is None:
            continue
        if name == "stream":
            chat[name] = flag(value, name)
        elif name in fields:
            chat[fields[name]] = value
        elif name in VLLM_FIELDS:
            chat[name] = value
        else:
            raise wrong(name, f"not a field of {api} that is supported here (docs/api.md)")
    return chat


def one_of(value: object, makers: Mapping[str, Callable[[], Any]], param: str) -> Any:
    """What the maker for ``value`` gives; refuses a value that none is named after."""
    if not isinstance(value, str) or value not in makers:
        raise wrong(param, f"is {value!r}; supported are {', '.join(makers)}")
    return makers[value]()


def content_of(parts: list[Json]) -> str | list[Json]:
    """Chat content from chat parts: a lone text is a string, as other clients write it."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return cast("str", parts[0]["text"])
    return parts


def assistant(*, reasoning: list[str], said: list[str], calls: list[Json]) -> Json:
    """A chat message of the assistant, with the fields that a chat client would send back."""
    message: Json = {"role": "assistant", "content": "".join(said) if said else None}
    if reasoning:
        message["reasoning"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def is_plain_text(message: Json) -> bool:
    """Is this a message of the assistant with text and no more? Another cannot be gone on with."""
    return message["role"] == "assistant" and not message.keys() & {"tool_calls", "reasoning"}


def call(call_id: str, name: str, arguments: str) -> Json:
    """A tool call as chat messages have it; ``arguments`` is JSON text."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}

"""From a Messages request to the chat request that asks the same of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from entrogate.errors import RequestError
from entrogate.wire.body import parse_json_object, to_json
from entrogate.wire.chat_fields import whole_number
from entrogate.wire.door_fields import (
    Json,
    assistant,
    call,
    content_of,
    is_plain_text,
    object_of,
    objects,
    passed_on,
    text,
    wrong,
)
from entrogate.wire.opt_out import allows_recording
from entrogate.wire.request import ChatRequest, chat_request
from entrogate.wire.system import one_system

_API = "the Messages API"
_RENAMED = {
    "model": "model",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
    "metadata": "metadata",
    "stream": "stream",
}
_READ = frozenset(
    {
        "mcp_servers", "messages", "output_config", "output_format", "store", "system", "thinking",
        "tool_choice", "tools",
    }
)  # fmt: skip
# Of a service that bills, routes and caches on its own terms: nothing here depends on them.
_IGNORED = frozenset(
    {
        "betas", "billing_policy", "cache_control", "compaction", "context_management",
        "diagnostics", "fallback_credit_token", "fallbacks", "inference_geo", "mm_payload",
        "request_id", "return_mm_kwargs", "service_tier", "speed", "user_profile_id",
        "workspace_id",
    }
)  # fmt: skip
_ATTRIBUTION = "x-anthropic-billing-header"


def parse_messages(raw: bytes) -> ChatRequest:
    """The chat request for a Messages body. Raises RequestError that names the field."""
    body = parse_json_object(raw)
    if whole_number(body.get("max_tokens"), "max_tokens") is None:
        raise wrong("max_tokens", "want a whole number; the Messages API requires it")
    chat = chat_body(body)
    if chat.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    request = replace(
        chat_request(chat),
        recorded=allows_recording(body),
        failed_results=_failed(body["messages"]),
    )
    request.door["name"] = "messages"
    return request


def parse_count(raw: bytes) -> bytes:
    """The body for vLLM's ``/tokenize`` that counts what a Messages request would send."""
    body = chat_body(parse_json_object(raw))
    wanted = ("model", "messages", "tools", "chat_template", "chat_template_kwargs")
    prompt = {name: body[name] for name in wanted if name in body}
    if body.get("tool_choice") == "none":
        prompt.pop("tools", None)
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in body:
            prompt[name] = body[name]
    return to_json(prompt)


def chat_body(body: Json) -> Json:
    """Every field of a Messages body as chat says it."""
    chat = passed_on(body, _RENAMED, _READ | _IGNORED, _API)
    messages = one_system([*_system(body.get("system")), *_messages(body.get("messages"))])
    chat["messages"] = messages
    if messages and is_plain_text(messages[-1]):
        # A last message of the assistant is the beginning of the answer.
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if body.get("tools"):
        chat["tools"] = [
            _tool(tool, f"tools[{i}]") for i, tool in enumerate(objects(body["tools"], "tools"))
        ]
    if body.get("tool_choice") is not None:
        chat |= _tool_choice(object_of(body["tool_choice"], "tool_choice"))
    if body.get("mcp_servers"):
        raise wrong("mcp_servers", "servers that the model's host would call are not supported")
    if body.get("output_format") is not None:  # what the beta called it
        chat |= _format(object_of(body["output_format"], "output_format"), "output_format")
    if body.get("output_config") is not None:
        chat |= _output(object_of(body["output_config"], "output_config"))
    if body.get("thinking") is not None:
        chat |= _thinking(object_of(body["thinking"], "thinking"))
    return chat


def _system(system: object) -> list[Json]:
    if not system:
        return []
    if isinstance(system, str):
        system = [{"type": "text", "text": system}]
    blocks = objects(system, "system")
    for position, block in enumerate(blocks):
        if block.get("type") != "text":
            raise wrong(f"system[{position}].type", f"is {block.get('type')!r}; want text")
    said = [text(block, "text", f"system[{i}]") for i, block in enumerate(blocks)]
    # Claude Code's attribution differs in every request: no two turns would share a prefix.
    kept = [part for part in said if not part.startswith(_ATTRIBUTION)]
    return [{"role": "system", "content": "".join(kept)}] if kept else []


def _messages(messages: object) -> list[Json]:
    chat: list[Json] = []
    for position, message in enumerate(objects(messages, "messages")):
        where = f"messages[{position}]"
        role, content = message.get("role"), message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        blocks = objects(content, f"{where}.content")
        if role == "assistant":
            chat.append(_assistant(blocks, where))
        elif role == "user":
            chat += _user(blocks, where)
        elif role == "system":
            chat += _system(blocks)
        else:
            raise wrong(f"{where}.role", f"is {role!r}; want user or assistant")
    return chat


def _assistant(blocks: list[Json], where: str) -> Json:
    reasoning: list[str] = []
    said: list[str] = []
    calls: list[Json] = []
    for position, block in enumerate(blocks):
        here = f"{where}.content[{position}]"
        match block.get("type"):
            case "text":
                said.append(text(block, "text", here))
            case "thinking":
                reasoning.append(text(block, "thinking", here))
            case "tool_use":
                arguments = to_json(object_of(block.get("input"), f"{here}.input")).decode()
                calls.append(call(text(block, "id", here), text(block, "name", here), arguments))
            case "redacted_thinking":
                pass  # nobody but its author can read it
            case other:
                raise _unsupported(here, other, "text, thinking and tool_use")
    return assistant(reasoning=reasoning, said=said, calls=calls)


def _user(blocks: list[Json], where: str) -> list[Json]:
    """Results first, each a message of its own; the rest is one message of the user."""
    results: list[Json] = []
    parts: list[Json] = []
    for position, block in enumerate(blocks):
        here = f"{where}.content[{position}]"
        if block.get("type") == "tool_result":
            call_id = text(block, "tool_use_id", here)
            content = _result(block.get("content"), f"{here}.content")
            results.append({"role": "tool", "tool_call_id": call_id, "content": content})
        else:
            parts.append(_part(block, here))
    if parts or not results:
        results.append({"role": "user", "content": content_of(parts)})
    return results


def _failed(messages: list[Json]) -> frozenset[str]:
    """The calls whose results are marked as errors, in ``messages`` that were translated already.

    Chat has no such mark: the model sees the text of the error alone.
    """
    return frozenset(
        block["tool_use_id"]
        for message in messages
        if message.get("role") == "user" and isinstance(message.get("content"), list)
        for block in message["content"]
        if block.get("type") == "tool_result" and block.get("is_error") is True
    )


def _result(content: object, where: str) -> str | list[Json]:
    if content is None or isinstance(content, str):
        return content or ""
    blocks = objects(content, where)
    return content_of([_part(block, f"{where}[{i}]") for i, block in enumerate(blocks)])


def _part(block: Json, where: str) -> Json:
    match block.get("type"):
        case "text":
            return {"type": "text", "text": text(block, "text", where)}
        case "tool_reference":  # a tool that a search of the client's found: it is offered already
            return {"type": "text", "text": text(block, "tool_name", where)}
        case "search_result":
            return {"type": "text", "text": _search_result(block, where)}
        case "document":
            return {"type": "text", "text": _document(block, where)}
        case "image":
            source = object_of(block.get("source"), f"{where}.source")
            return {"type": "image_url", "image_url": {"url": _image(source, f"{where}.source")}}
        case other:
            raise _unsupported(where, other, "text, image, document, search_result and tool_result")


def _search_result(block: Json, where: str) -> str:
    lines = [text(block, "title", where), text(block, "source", where)]
    parts = objects(block.get("content"), f"{where}.content")
    return "\n".join([*lines, *(text(part, "text", f"{where}.content") for part in parts)])


def _document(block: Json, where: str) -> str:
    """A document that is a text; of others, nobody here can read the pages."""
    source, here = object_of(block.get("source"), f"{where}.source"), f"{where}.source"
    match source.get("type"):
        case "text":
            said = text(source, "data", here)
        case "content" if isinstance(source.get("content"), str):
            said = text(source, "content", here)
        case "content":
            parts = objects(source.get("content"), f"{here}.content")
            said = "\n".join([text(part, "text", f"{here}.content") for part in parts])
        case other:
            raise wrong(f"{here}.type", f"is {other!r}; supported are text and content")
    heading = [block[name] for name in ("title", "context") if isinstance(block.get(name), str)]
    return "\n".join([*heading, said])


def _image(source: Json, where: str) -> str:
    match source.get("type"):
        case "url":
            return text(source, "url", where)
        case "base64":
            return f"data:{text(source, 'media_type', where)};base64,{text(source, 'data', where)}"
        case other:
            raise wrong(f"{where}.type", f"is {other!r}; supported are base64 and url")


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise wrong(
            f"{where}.type",
            f"{tool['type']!r} is a tool of Anthropic's own; only custom tools (with an"
            " input_schema, run by the client) are supported",
        )
    schema = object_of(tool.get("input_schema"), f"{where}.input_schema")
    function: Json = {"name": text(tool, "name", where)}
    # In chat's usual order: templates write a tool's fields as they come.
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = schema
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _tool_choice(choice: Json) -> Json:
    kind = choice.get("type")
    if kind == "tool":
        name = text(choice, "name", "tool_choice")
        chosen: Any = {"type": "function", "function": {"name": name}}
    else:
        names = {"auto": "auto", "any": "required", "none": "none"}
        chosen = names.get(kind) if isinstance(kind, str) else None
        if chosen is None:
            raise wrong("tool_choice.type", f"is {kind!r}; want auto, any, tool or none")
    chat: Json = {"tool_choice": chosen}
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _output(config: Json) -> Json:
    chat: Json = {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    if config.get("format") is not None:
        name = "output_config.format"
        chat |= _format(object_of(config["format"], name), name)
    return chat


def _format(form: Json, where: str) -> Json:
    if form.get("type") != "json_schema":
        raise wrong(f"{where}.type", "want json_schema")
    schema = {"name": "output", "schema": form.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _thinking(thinking: Json) -> Json:
    """Whether to think is said in vLLM's own words; ``adaptive`` leaves it to the model."""
    match thinking.get("type"):
        case "disabled":
            return {"reasoning_effort": "none"}
        case "enabled":
            budget = thinking.get("budget_tokens")
            return {} if budget is None else {"thinking_token_budget": budget}
        case "adaptive":
            return {}
        case other:
            raise wrong("thinking.type", f"is {other!r}; want enabled, disabled or adaptive")


def _unsupported(where: str, kind: object, supported: str) -> RequestError:
    return wrong(f"{where}.type", f"a block of type {kind!r} is not supported; {supported} are")

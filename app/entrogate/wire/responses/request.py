"""From a Responses request to the chat request that asks the same of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from entrogate.errors import RequestError
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

_API = "the Responses API"
_RENAMED = {
    "model": "model",
    "max_output_tokens": "max_completion_tokens",
    "include_reasoning": "include_reasoning",
    "temperature": "temperature",
    "top_p": "top_p",
    "parallel_tool_calls": "parallel_tool_calls",
    "metadata": "metadata",
    "user": "user",
    "stream": "stream",
}
_READ = frozenset(
    {
        "input", "instructions", "previous_response_id", "reasoning", "store", "text", "tools",
        "tool_choice", "truncation", "background", "include", "top_logprobs",
        "enable_response_messages",
    }
)  # fmt: skip
# What a response repeats of its request, and no other column of the record has in this form.
SHOWN = (
    "frequency_penalty", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls",
    "presence_penalty", "previous_response_id", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "top_logprobs",
    "top_p", "user",
)  # fmt: skip
# Of a service that bills, routes, caches and compacts on its own terms, and of the clients' own
# accounting: nothing here depends on them.
_IGNORED = frozenset(
    {
        "access_programs", "background_options", "client_metadata", "context_management", "image",
        "max_tool_calls", "mm_payload", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "request_id", "return_mm_kwargs", "safety_identifier",
        "service_tier", "stream_options",
    }
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
# Parts of the items of built-in tools, of which there are none here; of an image that the client
# has; of reasoning, which stands here in clear text.
_HARMLESS_INCLUDES = frozenset(
    {
        "code_interpreter_call.outputs", "computer_call_output.output.image_url",
        "file_search_call.results", "message.input_image.image_url",
        "reasoning.encrypted_content", "web_search_call.action.sources", "web_search_call.results",
    }
)  # fmt: skip
_ASSISTANT_ITEMS = ("function_call", "reasoning")


def responses_request(body: Json, earlier: Sequence[Json] = ()) -> ChatRequest:
    """The chat request for a Responses body that goes on after ``earlier``, chat messages.

    Raises RequestError that names the field.
    """
    chat = passed_on(body, _RENAMED, _READ | _IGNORED, _API)
    _refuse(body)
    instructions = "" if body.get("instructions") is None else text(body, "instructions", "")
    said = [*earlier, *_input(body.get("input"))]
    if instructions:
        said.insert(0, {"role": "system", "content": instructions})
    chat["messages"] = one_system(said)
    if not chat["messages"]:
        raise wrong("input", "is empty; want a text or a list of items")
    if _is_begun(body.get("input")) and is_plain_text(chat["messages"][-1]):
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if body.get("tools"):
        chat["tools"] = [
            _tool(tool, f"tools[{i}]") for i, tool in enumerate(objects(body["tools"], "tools"))
        ]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    if body.get("reasoning") is not None:
        effort = object_of(body["reasoning"], "reasoning").get("effort")
        if effort is not None:
            chat["reasoning_effort"] = effort
    if body.get("text") is not None:
        chat |= _format(object_of(body["text"], "text").get("format"))
    if wants_logprobs(body):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    if chat.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    request = replace(chat_request(chat), recorded=allows_recording(body))
    request.door.update(
        name="responses",
        instructions=bool(instructions),
        stored=request.recorded,
        asked={name: body[name] for name in SHOWN if body.get(name) is not None},
    )
    if instructions and chat["messages"][0]["content"] != instructions:
        request.door["instructions_characters"] = len(instructions)  # of what they were joined to
    return request


def wants_logprobs(body: Json) -> bool:
    """Did the client ask for the log-probs of the text?"""
    include: object = body.get("include")
    return isinstance(include, list) and _LOGPROBS in include


def _refuse(body: Json) -> None:
    if body.get("background"):
        raise wrong("background", "answers in the background are not supported")
    if body.get("truncation") not in (None, "disabled"):
        raise wrong("truncation", f"is {body['truncation']!r}; only disabled is supported")
    include: object = body.get("include") or []
    if not isinstance(include, list):
        raise wrong("include", "want a list of texts")
    for name in cast("list[object]", include):
        if not isinstance(name, str) or name not in {_LOGPROBS, *_HARMLESS_INCLUDES}:
            raise wrong("include", f"{name!r} is not supported")
    if body.get("enable_response_messages"):
        raise wrong("enable_response_messages", "messages are not repeated in a response here")
    top: object = body.get("top_logprobs")
    if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < -1):
        raise wrong("top_logprobs", f"is {top!r}; want a whole number")


def _is_begun(value: object) -> bool:
    """Is the last item a message of the assistant that was left unfinished, to be gone on with?"""
    last: object = cast("list[object]", value)[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict):
        return False
    item = cast("Json", last)
    kind = item.get("type") or "message"
    unfinished = item.get("status") in ("in_progress", "incomplete")
    return kind == "message" and item.get("role") == "assistant" and unfinished


def _input(value: object) -> list[Json]:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: list[Json] = []
    said: list[tuple[Json, str]] = []  # items of one turn of the assistant, so far
    for position, item in enumerate(objects(value, "input")):
        where = f"input[{position}]"
        kind = item.get("type") or "message"
        if kind in _ASSISTANT_ITEMS or (kind == "message" and item.get("role") == "assistant"):
            if said and _begins_turn(item, said):
                messages.append(_turn(said))
                said = []
            said.append((item, where))
            continue
        if said:
            messages.append(_turn(said))
            said = []
        messages.append(_message(item, kind, where))
    if said:
        messages.append(_turn(said))
    return messages


def _begins_turn(item: Json, said: list[tuple[Json, str]]) -> bool:
    """A turn reasons, then speaks, then calls: what comes before its like is the next turn's."""
    last = said[-1][0].get("type") or "message"
    kind = item.get("type") or "message"
    # A turn of ours may think again after its text (a replayed call): its items share an answer id.
    return kind != "function_call" and last == "function_call"


def _turn(items: list[tuple[Json, str]]) -> Json:
    reasoning: list[str] = []
    said: list[str] = []
    calls: list[Json] = []
    for item, where in items:
        match item.get("type"):
            case "reasoning":
                reasoning += _reasoning(item, where)
            case "function_call":
                arguments = text(item, "arguments", where)
                calls.append(
                    call(text(item, "call_id", where), text(item, "name", where), arguments)
                )
            case _:
                said += _said(item.get("content"), where)
    return assistant(reasoning=reasoning, said=said, calls=calls)


def _reasoning(item: Json, where: str) -> Iterator[str]:
    """The reasoning itself; a summary stands in where only that came back."""
    for name in ("content", "summary"):
        parts = objects(item.get(name) or [], f"{where}.{name}")
        if parts:
            return iter(
                [text(part, "text", f"{where}.{name}[{i}]") for i, part in enumerate(parts)]
            )
    return iter(())


def _said(content: object, where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    said: list[str] = []
    for position, part in enumerate(objects(content, f"{where}.content")):
        here = f"{where}.content[{position}]"
        match part.get("type"):
            case "output_text" | "input_text" | "text":
                said.append(text(part, "text", here))
            case "refusal":
                said.append(text(part, "refusal", here))
            case other:
                raise wrong(f"{here}.type", f"is {other!r}; supported are output_text and refusal")
    return said


def _message(item: Json, kind: str, where: str) -> Json:
    match kind:
        case "message":
            role = item.get("role")
            if role not in ("user", "system", "developer"):
                raise wrong(
                    f"{where}.role", f"is {role!r}; want user, assistant, system or developer"
                )
            content = _content(item.get("content"), f"{where}.content")
            return {"role": "user" if role == "user" else "system", "content": content}
        case "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            call_id = text(item, "call_id", where)
            return {"role": "tool", "tool_call_id": call_id, "content": content}
        case "item_reference":
            raise wrong(
                f"{where}.type",
                "item_reference: items are not kept by id here; send the item itself, or name"
                " the turn with previous_response_id",
            )
        case _:
            raise wrong(
                f"{where}.type",
                f"is {kind!r}; supported are message, function_call, function_call_output"
                " and reasoning",
            )


def _content(content: object, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    parts = objects(content, where)
    return content_of([_part(part, f"{where}[{i}]") for i, part in enumerate(parts)])


def _part(part: Json, where: str) -> Json:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": text(part, "text", where)}
        case "input_image":
            if part.get("image_url") is None:
                raise wrong(where, "an image needs its image_url: files are not kept here")
            image: Json = {"url": text(part, "image_url", where)}
            if part.get("detail") is not None:
                image["detail"] = part["detail"]
            return {"type": "image_url", "image_url": image}
        case other:
            raise wrong(f"{where}.type", f"is {other!r}; supported are input_text and input_image")


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type") != "function":
        raise _not_a_function(tool.get("type"), f"{where}.type")
    function: Json = {"name": text(tool, "name", where)}
    for name in ("description", "parameters", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    chosen = object_of(choice, "tool_choice")
    if chosen.get("type") != "function":
        raise _not_a_function(chosen.get("type"), "tool_choice.type")
    return {"type": "function", "function": {"name": text(chosen, "name", "tool_choice")}}


def _not_a_function(kind: object, param: str) -> RequestError:
    return wrong(
        param,
        f"{kind!r} is a built-in of OpenAI's service; only function tools, run by the client, are"
        " supported",
    )


def _format(form: object) -> Json:
    if form is None:
        return {}
    wanted = object_of(form, "text.format")
    match wanted.get("type"):
        case "text":
            return {}
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            names = ("name", "schema", "strict", "description")
            schema = {name: wanted[name] for name in names if wanted.get(name) is not None}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case other:
            raise wrong("text.format.type", f"is {other!r}; want text, json_object or json_schema")

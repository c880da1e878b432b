"""Prompts of the scripted upstream: messages as its template writes them, and where it goes on."""

from __future__ import annotations

from typing import Any, cast

from entrogate_lab.bench.script import (
    CALL,
    CALL_END,
    END,
    START,
    THINK,
    THINK_END,
    Choices,
    choices_of,
    parse_script,
)


def render_message(message: dict[str, Any]) -> str:
    """One message of a chat, end marker included."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in cast("list[dict[str, Any]]", content))
    role = message["role"]
    if role == "tool":
        return f"{START}user\n<tool_response>\n{content}\n</tool_response>{END}\n"
    if role != "assistant":
        return f"{START}{role}\n{content}{END}\n"
    reasoning = message.get("reasoning")
    head = f"{THINK}{reasoning}{THINK_END}\n\n" if reasoning else ""
    body = content.lstrip("\n")
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    blocks = [
        f'{CALL}\n{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}\n{CALL_END}'
        for call in calls
    ]
    between = "\n" if body and blocks and not body.endswith("\n") else ""
    return f"{START}assistant\n{head}{body}{between}" + "\n".join(blocks) + f"{END}\n"


def position_in(prompt: str) -> tuple[Choices, str]:
    """The step that comes next in ``prompt``, and what of it is already there."""
    opening = f"{START}assistant\n"
    users = prompt.rfind("script:")
    after = prompt[max(users, 0) :]
    turns = after.split(opening)
    partial = turns[-1] if len(turns) > 1 else ""
    message = after.split(END, 1)[0]
    return choices_of(parse_script(message), max(0, len(turns) - 2)), partial

"""One system message, at the beginning: newer chat templates refuse any other.

The other APIs have several ways to instruct a model (``instructions``, ``system``, items and
messages of the roles system and developer, before the conversation or within it). What stands
before the conversation becomes one message. What stands within it stays where it is, as the user's:
moved to the front, it would change the prompt that earlier turns share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import cast

from entrogate.wire.door_fields import Json

SEPARATOR = "\n\n"


def one_system(messages: Sequence[Json]) -> list[Json]:
    """Chat messages of which the first alone may be a system message."""
    leading = list(takewhile(_is_system, messages))
    later = messages[len(leading) :]
    first = [{"role": "system", "content": _joined(leading)}] if leading else []
    return first + [{**m, "role": "user"} if _is_system(m) else m for m in later]


def _is_system(message: Json) -> bool:
    return message["role"] == "system"


def _joined(leading: list[Json]) -> str | list[Json]:
    """Their content as one text; as parts, where some are no text."""
    contents: list[str | list[Json]] = [m["content"] for m in leading]
    if len(contents) == 1:
        return contents[0]
    texts = [_text(content) for content in contents]
    if None not in texts:
        return SEPARATOR.join(cast("list[str]", texts))
    parts: list[Json] = []
    for content in contents:
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


def _text(content: str | list[Json]) -> str | None:
    """As vLLM joins the parts of a text; None where one of them is something else."""
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        return None
    return "\n".join([part["text"] for part in content])

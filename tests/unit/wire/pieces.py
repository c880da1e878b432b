"""Tool calls in pieces, as parsers of many habits send them."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from entrogate.wire.chunks import ToolCallPart

Call = tuple[int, str, str, str]  # index, id, name, arguments
ARGUMENTS = st.text(max_size=30)


def part(index: int = 0, name: str | None = None, args: str | None = None, call: Any = None) -> Any:
    """A piece as a parser sends it."""
    piece = {"index": index, "id": call, "function": {"name": name, "arguments": args}}
    return msgspec.convert(piece, ToolCallPart)


def cut(draw: st.DrawFn, text: str) -> list[str]:
    """``text`` cut anywhere."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text[a:b]]


@st.composite
def said_calls(
    draw: st.DrawFn,
    arguments_of: st.SearchStrategy[str] = ARGUMENTS,
) -> tuple[list[Call], list[list[ToolCallPart]]]:
    """Calls, and the deltas of a parser with any of the known habits that say them."""
    indexes = draw(st.lists(st.integers(0, 40), unique=True, max_size=4))
    calls: list[Call] = []
    queues: list[list[ToolCallPart]] = []
    for index in indexes:
        name = draw(st.text("abcdefgh_", min_size=1, max_size=12))
        arguments = draw(arguments_of)
        call_id = f"up-{index}"
        pieces = cut(draw, arguments)
        ids = draw(st.sampled_from(["first", "each", "new", "empty"]))
        names = draw(st.sampled_from(["first", "each", "late", "cut"]))
        queue = [part(index, call=call_id)]
        if names == "cut":
            at = draw(st.integers(0, len(name)))
            halves = [name] if name[:at] == name[at:] else [name[:at], name[at:]]
            queue += [part(index, half, "") for half in halves]
        elif names != "late" or not pieces:
            queue.append(part(index, name, draw(st.sampled_from(["", None]))))
        for number, piece in enumerate(pieces):
            again = {"first": None, "each": call_id, "new": f"x{number}", "empty": ""}[ids]
            queue.append(part(index, name if names == "each" else None, piece, again))
        if names == "late" and pieces:
            queue.append(part(index, name))
        calls.append((index, call_id, name, arguments))
        queues.append(queue)
    deltas: list[list[ToolCallPart]] = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        if deltas and draw(st.booleans()):
            deltas[-1].append(queue.pop(0))
        else:
            deltas.append([queue.pop(0)])
    return sorted(calls), deltas

"""Two servers' answers to the same requests: the same bytes, but for where vLLM cuts its events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.integration.harness import events


def pieces(stream: bytes) -> list[list[Any]]:
    """What a stream says, whatever its events' borders are: kind, place, joined text."""
    found: list[list[Any]] = []

    def add(kind: str, place: int, text: str) -> None:
        if found and found[-1][:2] == [kind, place]:
            found[-1][2] += text
        else:
            found.append([kind, place, text])

    for event in events(stream):
        for choice in event["choices"]:
            delta = choice["delta"]
            for kind in ("role", "reasoning", "content"):
                if delta.get(kind) is not None:
                    add(kind, 0, delta[kind])
            for call in delta.get("tool_calls", ()):
                for kind in ("name", "arguments"):
                    if kind in call["function"]:
                        add(kind, call["index"], call["function"][kind])
            if choice["finish_reason"] is not None:
                add("finish", 0, choice["finish_reason"])
    return found


def assert_same_answers(
    bodies: Sequence[dict[str, Any]], one: Sequence[bytes], other: Sequence[bytes]
) -> None:
    """Answers without ids and times are the same bytes.

    vLLM joins tokens in one event when its HTTP process falls behind. Only then may a stream's
    events be cut differently, in at most a quarter of the cases, and what they say in sum must
    still be the same.
    """
    unequal = [(c, a, b) for c, a, b in zip(bodies, one, other, strict=True) if a != b]
    for body, a, b in unequal:
        assert body["stream"], (a, b)
        assert pieces(a) == pieces(b)
    assert len(unequal) <= len(bodies) / 4

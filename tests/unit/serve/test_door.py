"""A chat stream on its way through a door, when the model server says something impossible."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import orjson

from entrogate.serve.door import translated
from entrogate.wire.responses.answer import ResponsesAnswer
from tests.integration.doors import events_of


async def test_what_came_before_a_fault_is_told() -> None:
    """Although all of it came in one piece."""
    nameless = {"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{}"}}]}
    deltas = [{"content": "Hi"}, nameless]
    chunks = [
        {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    raw = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks)
    faults: list[str] = []

    async def said() -> AsyncGenerator[bytes]:
        yield raw + b"data: [DONE]\n\n"

    out = b"".join([part async for part in translated(said(), ResponsesAnswer({}), faults.append)])
    events = events_of(out)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "response.output_text.delta" in [event["type"] for event in events]
    assert events[-1]["type"] == "response.failed"
    assert "without a name" in json.dumps(events[-1])
    assert faults == ["the upstream sent a tool call without a name"]

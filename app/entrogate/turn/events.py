"""Single events of a chat stream, as bytes: made uniform, renumbered, under our ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec
import orjson

from entrogate.errors import UpstreamProtocol, no_chunk
from entrogate.turn.choice import Choice
from entrogate.wire.chunks import Chunk, ToolCallPart, decode_chunk, is_foreign
from entrogate.wire.dialects import uniform
from entrogate.wire.sse import json_event

Json = dict[str, Any]


def read_chunk(data: bytes) -> Chunk:
    """The fields we need of one event's data. Raises UpstreamProtocol where it is no chunk."""
    try:
        return decode_chunk(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise no_chunk(error) from None


def read_uniform(data: bytes) -> tuple[bytes, Chunk]:
    """An event's data, and what we read of it; of another dialect, made as vLLM writes it.

    Raises UpstreamProtocol where it is no chunk in any.
    """
    try:
        chunk = read_chunk(data)
    except UpstreamProtocol:
        data = uniform(data)
        return data, read_chunk(data)
    if any(is_foreign(choice.delta, choice.finish_reason) for choice in chunk.choices):
        data = uniform(data)
        chunk = read_chunk(data)
    return data, chunk


def renumbered(event: bytes, parts: list[ToolCallPart]) -> bytes:
    """``event`` with the indexes that ``parts``, its pieces of calls, have been given."""
    payload = payload_of(event[len(b"data:") :])
    pieces = payload["choices"][0]["delta"]["tool_calls"]
    numbered = [{**p, "index": part.index} for part, p in zip(parts, pieces, strict=True)]
    payload["choices"][0]["delta"]["tool_calls"] = numbered
    return json_event(payload)


def said_error(payload: Json) -> object:
    """What an event that is no chunk says of a failure, in a form of its own; None for nothing."""
    if "choices" in payload:
        return None
    if isinstance(payload.get("message"), str):
        return payload
    said = payload.get("message") or payload.get("detail")
    return {"message": str(said)} if said else None


def said_failure(body: bytes) -> str | None:
    """What a body that came in place of an answer says of a failure; None for nothing."""
    try:
        payload = payload_of(body)
    except UpstreamProtocol:
        return None
    error: Any = payload.get("error") or said_error(payload)
    if isinstance(error, dict):
        error = cast("Json", error).get("message") or cast("Json", error)
    return None if error is None else str(error)[:300]


def payload_of(data: bytes) -> Json:
    """The object in ``data``, of an event or a body. Raises UpstreamProtocol for anything else."""
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise no_chunk(error) from None
    if not isinstance(payload, dict):
        raise UpstreamProtocol("the upstream sent an event that is no object")
    return cast("Json", payload)


def one_by_one(payload: Json) -> Iterator[Json]:
    """The chunk as one for each of its choices: vLLM sends them so, other servers together."""
    for choice in payload["choices"]:
        yield {**payload, "choices": [choice]}


def is_compact(data: bytes) -> bool:
    """Is it JSON as vLLM writes it, without spaces, so that its fields can be found as bytes?"""
    return b'"choices":[' in data


class ToldCalls:
    """What the client has been told of the calls of one choice: each id and name once.

    Some parsers repeat them in each piece, or give each piece an id of its own.
    """

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def tell(self, event: bytes, data: bytes, choice: Choice) -> bytes:
        """``event``, a chunk with pieces of calls that ``choice`` has taken, under our ids."""
        parts = read_chunk(data).choices[0].delta.tool_calls or ()
        if all(
            part.index in self._names
            and part.id is None
            and (part.function is None or part.function.name is None)
            for part in parts
        ):
            return event
        payload = payload_of(data)
        for part, piece in zip(parts, payload["choices"][0]["delta"]["tool_calls"], strict=True):
            self._tell_piece(part.index, piece, choice)
        return json_event(payload)

    def _tell_piece(self, index: int, piece: Json, choice: Choice) -> None:
        if index in self._names:
            piece.pop("id", None)
        else:
            self._names[index] = ""
            piece["id"] = choice.call_id(index)
            piece.setdefault("type", "function")
        function = piece.get("function")
        call = choice.calls.get(index)
        if function is None or call is None or function.get("name") is None:
            return
        told = self._names[index]
        self._names[index] = call.name
        if len(call.name) > len(told) or not told:
            function["name"] = call.name[len(told) :]
        else:
            del function["name"]


def without_finish(payload: Json) -> tuple[Json, Json]:
    """A chunk that both says something and finishes, as two: what it says, and the finish."""
    choice = payload["choices"][0]
    said = {**choice, "finish_reason": None}
    said.pop("stop_reason", None)
    finish: Json = {**choice, "delta": {}, "logprobs": None}
    if "token_ids" in choice:
        finish["token_ids"] = None
    return {**payload, "choices": [said]}, {**payload, "choices": [finish]}

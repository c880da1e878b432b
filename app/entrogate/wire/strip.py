"""Takes out of an answer what we asked for and the client did not, leaving every other byte.

The cuts are made on the bytes: inside a JSON string every quote is escaped, so a key with its
two bare quotes can only be a key. What cannot be cut (a client that wants fewer log-probs than we
asked for) is parsed and written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from entrogate.errors import UpstreamProtocol, no_chunk

_UNEXPECTED = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the client itself asked for."""

    logprobs: bool
    top_logprobs: int
    token_ids: bool
    usage: bool  # the usage event of a stream
    reasoning: bool

    @property
    def metadata(self) -> bool:
        """Does the client want anything that keeps an otherwise empty event alive?"""
        return self.logprobs or self.token_ids


def strip_event(event: bytes, wanted: Wanted) -> bytes:
    """Strip one streamed event; ``event`` is the whole of it, blank line included.

    Raises UpstreamProtocol for one that vLLM does not send.
    """
    try:
        if not _ordered(event):
            return b"data: " + _parsed_and_stripped(event[len(b"data:") :], wanted) + b"\n\n"
        if wanted.logprobs and b'"logprobs":{' in event:
            payload = orjson.loads(event[len(b"data:") :])
            _trim_logprobs(payload, wanted.top_logprobs)
            event = b"data: " + orjson.dumps(payload) + b"\n\n"
        elif not wanted.logprobs and not wanted.token_ids:
            return _cut_both(event) or _null_injected(event, wanted)
        return _null_injected(event, wanted)
    except _UNEXPECTED as error:
        raise no_chunk(error) from None


def strip_body(body: bytes, wanted: Wanted) -> bytes:
    """Strip a chat completion that was not streamed.

    Raises UpstreamProtocol for one that vLLM does not send.
    """
    try:
        if not _ordered(body):
            return _parsed_and_stripped(body, wanted)
        if wanted.logprobs or not wanted.reasoning:
            answer = orjson.loads(body)
            _trim_logprobs(answer, wanted.top_logprobs)
            if not wanted.reasoning:
                for choice in answer["choices"]:
                    _hide_reasoning(choice["message"])
            body = orjson.dumps(answer)
        return _null_injected(body, wanted)
    except _UNEXPECTED as error:
        raise UpstreamProtocol(f"the upstream's answer is no completion: {error}") from None


def _ordered(data: bytes) -> bool:
    """Do the fields of a choice stand in vLLM's order, log-probs before the reason it finished?"""
    return data.find(b'"logprobs":{') < 0 or (
        data.find(b'"finish_reason":', 0, data.find(b'"logprobs":{')) < 0
        and b',"finish_reason":' in data
    )


def _parsed_and_stripped(data: bytes, wanted: Wanted) -> bytes:
    """The same for a server that writes its fields in another order."""
    payload: dict[str, Any] = orjson.loads(data)
    if wanted.logprobs:
        _trim_logprobs(payload, wanted.top_logprobs)
    for choice in payload["choices"]:
        if not wanted.logprobs:
            choice["logprobs"] = None
        if not wanted.token_ids and choice.get("token_ids") is not None:
            choice["token_ids"] = None
        if not wanted.reasoning and "message" in choice:
            _hide_reasoning(choice["message"])
    if not wanted.token_ids and payload.get("prompt_token_ids") is not None:
        payload["prompt_token_ids"] = None
    return orjson.dumps(payload)


def _cut_both(event: bytes) -> bytes | None:
    """The common case in one pass: log-probs, then token ids, of a single choice become null.

    None for an event of another shape.
    """
    start = event.find(b'"logprobs":{')
    ids = event.rfind(b'"token_ids":[')
    if start < 0 or ids < start or event.find(b'"token_ids":[') < ids:
        return None
    if b'"prompt_token_ids":[' in event:
        return None
    stop = event.index(b',"finish_reason":', start)
    if event.find(b'"logprobs":{', stop) >= 0:
        return None
    closed = event.index(b"]", ids) + 1
    return b"".join((event[: start + 11], b"null", event[stop : ids + 12], b"null", event[closed:]))


def _null_injected(data: bytes, wanted: Wanted) -> bytes:
    if not wanted.logprobs:
        data = _null(data, b'"logprobs":{', b',"finish_reason":', closing_length=0)
    if not wanted.token_ids:
        data = _null(data, b'"token_ids":[', b"]", closing_length=1)
        data = _null(data, b'"prompt_token_ids":[', b"]", closing_length=1)
    return data


def _null(data: bytes, opening: bytes, closing: bytes, *, closing_length: int) -> bytes:
    """Replace every value from the last byte of ``opening`` to ``closing`` with null."""
    start = data.find(opening)
    while start >= 0:
        value = start + len(opening) - 1
        stop = data.index(closing, value) + closing_length
        data = data[:value] + b"null" + data[stop:]
        start = data.find(opening, value)
    return data


def _trim_logprobs(payload: dict[str, Any], top_logprobs: int) -> None:
    """Keep the first ``top_logprobs`` alternatives, as vLLM does (all for -1)."""
    if top_logprobs < 0:
        return
    for choice in payload["choices"]:
        logprobs: dict[str, list[dict[str, list[Any]]]] = choice.get("logprobs") or {}
        for token in logprobs.get("content") or ():
            del token["top_logprobs"][top_logprobs:]


def _hide_reasoning(message: dict[str, Any]) -> None:
    for name in ("reasoning", "reasoning_content"):
        if name in message:
            message[name] = None

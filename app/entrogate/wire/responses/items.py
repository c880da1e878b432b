"""The objects that a response is made of: its items, their parts, and what it repeats.

Every field that vLLM writes is there, as null where it has no value, so that a client that was
written against vLLM's own route finds what it looks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entrogate.wire.answer import Block
from entrogate.wire.said import Json, SaidToken

_ITEM_PREFIX = {"reasoning": "rs", "text": "msg", "refusal": "msg", "call": "fc"}
# Fields of the request that the response repeats, and what they are where it did not say.
_REPEATED: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
# What vLLM can say and we have nothing for.
_NULL = ("ec_transfer_params", "input_messages", "kv_transfer_params", "output_messages", "prompt")


def repeated(asked: Mapping[str, Any], *, logprobs: bool) -> Json:
    """What a response says of its request; ``top_logprobs`` is null where none are returned."""
    said: Json = {
        name: default if asked.get(name) is None else asked[name]
        for name, default in _REPEATED.items()
    }
    said["top_logprobs"] = (asked.get("top_logprobs") or 0) if logprobs else None
    return said | dict.fromkeys(_NULL)


def item_id(block: Block, answer_id: str) -> str:
    """The id of an item, unique by its answer's."""
    return f"{_ITEM_PREFIX[block.kind]}_{answer_id}_{block.index}"


def item_of(block: Block, answer_id: str, status: str, *, empty: bool = False) -> Json:
    """One output item; ``empty`` as it stands before its first delta."""
    item: Json = {"id": item_id(block, answer_id), "status": status}
    content = [] if empty else [part_of(block)]
    match block.kind:
        case "reasoning":
            said: Json = {"summary": [], "content": content, "encrypted_content": None}
            return {"type": "reasoning", **item, **said}
        case "text" | "refusal":
            said = {"role": "assistant", "content": content, "phase": None}
            return {"type": "message", **item, **said}
        case "call":
            call = {"call_id": block.call_id, "name": block.name, "namespace": None}
            arguments = "" if empty else block.text
            return {"type": "function_call", **item, **call, "arguments": arguments}


def part_of(block: Block, *, empty: bool = False) -> Json:
    """The one part of an item's content."""
    text = "" if empty else block.text
    match block.kind:
        case "reasoning":
            return {"type": "reasoning_text", "text": text}
        case "refusal":
            return {"type": "refusal", "refusal": text}
        case _:
            tokens = () if empty else block.tokens
            logprobs = [_logprob(token) for token in tokens]
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def delta_logprobs(tokens: Sequence[SaidToken]) -> list[Json]:
    """The log-probs of a delta: a token's bytes stand in the finished part alone."""
    return [
        {
            "token": token.token,
            "logprob": token.logprob,
            "top_logprobs": [
                {"token": top.get("token"), "logprob": top.get("logprob")}
                for top in token.top_logprobs or ()
            ],
        }
        for token in tokens
    ]


def _logprob(token: SaidToken) -> Json:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": token.bytes or list(token.raw),
        "top_logprobs": [
            {
                "token": top.get("token"),
                "logprob": top.get("logprob"),
                "bytes": top.get("bytes") or list(str(top.get("token")).encode(errors="replace")),
            }
            for top in token.top_logprobs or ()
        ],
    }

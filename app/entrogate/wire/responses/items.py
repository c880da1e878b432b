"""The objects that a response is made of: its items, their parts, and what it repeats.

Every field that vLLM writes is there, as null where it has no value, so that a client that was
written against vLLM's own route finds what it looks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entrogate.wire.answer import Block
from entrogate.wire.said import Json, SaidToken, SaidUsage

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
    "reasoning": dict.fromkeys(("context", "effort", "generate_summary", "mode", "summary")),
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}, "verbosity": None},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
# What vLLM can say and we have nothing for.
_NULL = ("ec_transfer_params", "input_messages", "kv_transfer_params", "output_messages", "prompt")

_NO_CALL: Json = dict.fromkeys(("async", "caller", "namespace"))
_NO_TOOL: Json = dict.fromkeys(
    ("allowed_callers", "async", "defer_loading", "description", "output_schema", "strict")
)


def repeated(asked: Mapping[str, Any], *, logprobs: bool) -> Json:
    """What a response says of its request; ``top_logprobs`` is null where none are returned."""
    said: Json = {
        name: default if asked.get(name) is None else asked[name]
        for name, default in _REPEATED.items()
    }
    for name in ("reasoning", "text"):
        said[name] = _REPEATED[name] | said[name]
    said["tools"] = [_NO_TOOL | tool for tool in said["tools"] or ()]
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
            arguments = "" if empty else block.text
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return {"type": "function_call", **item, **call, **_NO_CALL}


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


def usage_of(usage: SaidUsage | None) -> Json | None:
    """The tokens of an answer; the counts by turn are vLLM's, of its built-in tools."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = prompt.cached_tokens if prompt is not None else None
    reasoned = completion.reasoning_tokens if completion is not None else None
    n_completion = usage.completion_tokens or 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": cached or 0,
            "cache_write_tokens": 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": n_completion,
        "output_tokens_details": {
            "reasoning_tokens": reasoned or 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage.prompt_tokens + n_completion,
    }

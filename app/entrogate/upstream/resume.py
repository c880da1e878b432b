"""Going on with a turn from its exact token ids, without the tool call.

A chat answer is cut before the tool-call token; ``/v1/completions`` takes the ids of the prompt
and of what is kept, with that token masked, and decodes the rest. vLLM's prefix
cache (`vllm.v1.core.kv_cache_manager`) makes it cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from entrogate.upstream.capabilities import Capabilities
from entrogate.wire.body import to_json
from entrogate.wire.chunks import CompletionChoice
from entrogate.wire.request import ChatRequest

_MASKED = -100.0  # the strongest bias vLLM takes; e^-100 is never sampled

_COPIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "priority",
    "user",
    "cache_salt",
    "vllm_xargs",
)
_READ = (*_COPIED, "max_completion_tokens", "max_tokens", "logit_bias", "min_tokens")


def kept_to_resume(request: ChatRequest) -> ChatRequest:
    """What `resume_request` reads of ``request``, and the names of its tools: to be kept for long.

    The token ids say what the messages and the tools said.
    """
    body = {name: request.body[name] for name in _READ if name in request.body}
    body["tools"] = [{"function": {"name": name}} for name in request.tool_names]
    return replace(
        request,
        messages=[],
        body=body,
        size_bytes=len(to_json(body)),
        metadata=None,
        failed_results=frozenset(),
        door={},
    )


def resume_request(
    request: ChatRequest,
    capabilities: Capabilities,
    *,
    prompt_token_ids: Sequence[int],
    kept_token_ids: Sequence[int],
    seed: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The body for ``/v1/completions``; None when no token may be sampled any more.

    ``arguments`` go to the engine, beside the client's. Penalties count the kept tokens as prompt,
    as vLLM does for any continued text.
    """
    source = request.body
    limit = source.get("max_completion_tokens") or source.get("max_tokens")
    prompt = [*prompt_token_ids, *kept_token_ids]
    room = [limit - len(kept_token_ids)] if isinstance(limit, int) else []
    if capabilities.max_model_len is not None:
        room.append(capabilities.max_model_len - len(prompt))
    if room and min(room) <= 0:
        return None
    body: dict[str, Any] = {name: source[name] for name in _COPIED if name in source}
    body["model"] = request.model or capabilities.model
    body["prompt"] = prompt
    body["stream"] = request.stream
    body["max_tokens"] = min(room) if room else 2**20
    body["logit_bias"] = {
        **(source.get("logit_bias") or {}),
        str(capabilities.tool_call_token_id): _MASKED,
    }
    if not capabilities.engine:
        body["logprobs"] = capabilities.top_logprobs
        body["return_token_ids"] = True
        # Texts of different tokens can be equal; their ids cannot.
        body["return_tokens_as_token_ids"] = True
    else:
        if request.wanted.logprobs:
            body["logprobs"] = request.wanted.top_logprobs
        body["return_token_ids"] = request.wanted.token_ids
    min_tokens = source.get("min_tokens")
    if isinstance(min_tokens, int) and min_tokens > len(kept_token_ids):
        body["min_tokens"] = min_tokens - len(kept_token_ids)
    if seed is not None:
        body["seed"] = seed
    if arguments is not None:
        body["vllm_xargs"] = {**body.get("vllm_xargs", {}), **arguments}
    return body


def chat_logprobs(choice: CompletionChoice, top_logprobs: int) -> dict[str, Any] | None:
    """The log-probs of a completion in the shape of a chat answer; tokens stay ``token_id:N``."""
    logprobs = choice.logprobs
    if logprobs is None:
        return None
    content: list[dict[str, Any]] = []
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        alternatives = list((top or {}).items())
        if top_logprobs >= 0:
            alternatives = alternatives[:top_logprobs]
        content.append(
            {
                "token": token,
                "logprob": logprob,
                "bytes": None,
                "top_logprobs": [
                    {"token": name, "logprob": value, "bytes": None} for name, value in alternatives
                ],
            }
        )
    return {"content": content}

"""Asks a model server what it can do: its models, its log-probs, the ids of the marker tokens.

A server need not be a vLLM. Chat is all that is needed; what else is missing, or refused, is said
by `Capabilities.problems`, and no turn asks for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import orjson

from entrogate.engine.frames import REQUEST_ARGUMENT
from entrogate.errors import ConfigError, UpstreamProtocol, UpstreamUnavailable
from entrogate.settings import UpstreamSettings
from entrogate.upstream import model_folder
from entrogate.upstream.capabilities import Capabilities
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.client import UpstreamClient
from entrogate.upstream.parsers import REASONING

# Upper bounds grow with ln V: where the size is not known, a size that no common model exceeds.
LARGEST_VOCABULARY = 262_144
_BLANK = ("\n", "\n\n")  # between the reasoning and the answer
_CAPTURE_TRIES, _CAPTURE_TRY_SECONDS = 4, 0.25
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "</s>")
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_REFUSED = (400, 422)  # a field that the server does not know, or a value it does not take
_FINAL = (401, 403, 404, 429)  # asking for less is no help
_LONGEST_BODY = 8 * 2**20
_LOCAL = ("127.0.0.1", "localhost", "::1")

Identity = tuple[tuple[str, str, int | None], ...]
"""Of the base model: each name it has, its folder or name at its origin, its longest prompt."""


async def ask_identity(client: UpstreamClient) -> Identity:
    """What tells one served model from another, by one cheap request.

    Raises UpstreamUnavailable when the server cannot be reached and UpstreamProtocol when it does
    not list its models.
    """
    return _identity(await _models(client))


async def ask_capabilities(
    client: UpstreamClient,
    settings: UpstreamSettings,
    *,
    vocab_size: int | None = None,
    channel: CaptureChannel | None = None,
) -> Capabilities:
    """Ask the server for its models, its log-prob cap and the ids of the marker tokens.

    With a ``channel``, also whether what the engine captures arrives on it.

    Raises UpstreamUnavailable when it cannot be reached or fails, and UpstreamProtocol when it does
    not list its models.
    """
    models = await _models(client)
    model: str = models[0]["id"]
    root = models[0].get("root")
    folder = root if isinstance(root, str) and _is_local(client) else None
    probe = await _probe_completions(client, model, settings.top_logprobs)
    if not (probe.completions and probe.top_logprobs and probe.token_ids):
        probe = await _probe_chat(client, model, settings.top_logprobs, probe)
    opening = settings.tool_call_token
    closing = f"{opening[:1]}/{opening[1:]}"
    pairs = _thoughts(settings.reasoning_end_token)
    texts = (opening, closing, *(text for pair in pairs for text in pair), *_CONTROL, *_BLANK)
    ids = await _token_ids(client, model, texts, folder)
    known = ids or {}
    think, reasoning_end = next((pair for pair in pairs if pair[1] in known), pairs[0])
    longest = models[0].get("max_model_len")
    return Capabilities(
        model=model,
        folder=None if folder is None else Path(folder),
        max_model_len=longest if isinstance(longest, int) else None,
        top_logprobs=probe.top_logprobs,
        token_ids=probe.token_ids,
        tool_call_token_id=known.get(opening),
        tool_call_end_token_id=known.get(closing),
        reasoning_start_token_id=known.get(think),
        reasoning_end_token_id=known.get(reasoning_end),
        control_token_ids=frozenset(known[text] for text in _CONTROL if text in known),
        vocab_size=vocab_size or await _vocabulary_size(folder) or LARGEST_VOCABULARY,
        system_fingerprint=probe.system_fingerprint,
        engine=channel is not None
        and probe.completions
        and await _captures(client, model, channel),
        blank_token_ids=frozenset(known[text] for text in _BLANK if text in known),
        base_models=frozenset(each[0] for each in _identity(models)),
        completions=probe.completions,
        tokenizer=ids is not None,
        usage=probe.usage,
        refused=probe.refused,
    )


def _thoughts(reasoning_end: str) -> list[tuple[str, str]]:
    """What may open and close the reasoning: what the settings say, or any pair that is known."""
    told = (reasoning_end.replace("/", "", 1), reasoning_end)
    known = [(opening, closing) for opening, closing, _ in REASONING]
    return known if told in known[:1] else [told]


async def _captures(client: UpstreamClient, model: str, channel: CaptureChannel) -> bool:
    """Does the engine capture a request, and does what it sends arrive?

    A subscription takes a moment to reach the engine, so it is tried more than once.
    """
    for _ in range(_CAPTURE_TRIES):
        with channel.follow(probing=True) as followed:
            arguments = {REQUEST_ARGUMENT: channel.argument(followed, None)}
            request = {"model": model, "prompt": "a", "max_tokens": 2, "vllm_xargs": arguments}
            status, body = await _call(client, "POST", _COMPLETIONS, request)
            if status != 200:
                return False
            if await followed.complete(1, _CAPTURE_TRY_SECONDS):
                usage = body.get("usage")
                counted = cast("dict[str, Any]", usage) if isinstance(usage, dict) else {}
                choice = followed.choices.get(0)
                return (
                    choice is not None
                    and choice.complete
                    and choice.n_tokens == counted.get("completion_tokens")
                )
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    completions: bool
    top_logprobs: int = 0
    token_ids: bool = False
    system_fingerprint: str | None = None
    usage: bool = True
    refused: str | None = None


async def _models(client: UpstreamClient) -> list[dict[str, Any]]:
    """The base model under each of its names, then its adapters (they have a ``parent``)."""
    status, body = await _call(client, "GET", "/v1/models", None)
    if status >= 500 or status == 429:
        raise UpstreamUnavailable(f"{client.base_url}/v1/models answered {status}")
    models = body.get("data") if status == 200 else None
    if not _are_models(models):
        raise UpstreamProtocol(
            f"{client.base_url}/v1/models answered {status} and no list of models:"
            " is this a vLLM server, and is the API key right?"
        )
    return cast("list[dict[str, Any]]", models)


def _are_models(models: object) -> bool:
    """A list of objects with an id, at least one."""
    if not isinstance(models, list) or not models:
        return False
    return all(
        isinstance(each, dict) and isinstance(cast("dict[str, Any]", each).get("id"), str)
        for each in cast("list[object]", models)
    )


def _identity(models: list[dict[str, Any]]) -> Identity:
    return tuple(
        (each["id"], str(each.get("root") or ""), each.get("max_model_len"))
        for each in models
        if each.get("parent") is None
    )


async def _probe_completions(client: UpstreamClient, model: str, wished: int) -> _Probe:
    """The largest k up to ``wished`` that the server grants, and whether it returns token ids.

    A server that does not complete plain prompts (a router, a managed endpoint) is asked for chat.
    """
    for top in _steps(wished):
        request = {
            "model": model,
            "prompt": "a",
            "max_tokens": 1,
            "logprobs": top,
            "return_token_ids": True,
            "temperature": 0,
        }
        status, body = await _call(client, "POST", _COMPLETIONS, request)
        choice = _first_choice(body) if status == 200 else None
        if choice is not None:
            return _Probe(
                completions=True,
                top_logprobs=top if choice.get("logprobs") else 0,
                token_ids=bool(choice.get("token_ids")),
                system_fingerprint=_text(body.get("system_fingerprint")),
            )
        if status not in _REFUSED:
            return _Probe(completions=False)
    plain = {"model": model, "prompt": "a", "max_tokens": 1}
    status, body = await _call(client, "POST", _COMPLETIONS, plain)
    return _Probe(completions=status == 200 and _first_choice(body) is not None)


async def _probe_chat(client: UpstreamClient, model: str, wished: int, known: _Probe) -> _Probe:
    """What chat requests may ask for: everything, then less and less until the server agrees.

    Raises UpstreamUnavailable where it fails instead of refusing: nothing is known then.
    """
    plain: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "a"}]}
    asked: list[dict[str, Any]] = []
    for ids in ({"return_token_ids": True}, {}):
        asked += [{"logprobs": True, "top_logprobs": top, **ids} for top in _steps(wished)]
    asked += [{"return_token_ids": True}, {}]
    status, said = 0, ""
    # OpenAI's newer models refuse `max_tokens`; servers older than its successor, the other.
    for limit in ("max_tokens", "max_completion_tokens"):
        for more in asked:
            status, body = await _call(client, "POST", _CHAT, {**plain, limit: 1, **more})
            choice = _first_choice(body) if status == 200 else None
            if choice is not None:
                return _Probe(
                    completions=known.completions,
                    top_logprobs=min(more.get("top_logprobs", 0), _alternatives(choice)),
                    token_ids=bool(choice.get("token_ids")),
                    system_fingerprint=_text(body.get("system_fingerprint")),
                    usage=await _takes_stream_options(client, {**plain, limit: 1}),
                )
            said = f"{status} {_message(body)}".strip()
            if status in _FINAL:
                break
    if status >= 500 or status == 429:
        raise UpstreamUnavailable(f"{client.base_url}{_CHAT} answered {said}")
    return _Probe(completions=known.completions, usage=False, refused=said)


async def _takes_stream_options(client: UpstreamClient, request: dict[str, Any]) -> bool:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, _ = await _call(client, "POST", _CHAT, {**request, **options})
    return status not in _REFUSED


def _steps(wished: int) -> list[int]:
    return list(dict.fromkeys((wished, min(wished, 20), min(wished, 5), 1)))


def _first_choice(body: dict[str, Any]) -> dict[str, Any] | None:
    choices = body.get("choices")
    first = cast("list[object]", choices)[0] if isinstance(choices, list) and choices else None
    return cast("dict[str, Any]", first) if isinstance(first, dict) else None


def _alternatives(choice: dict[str, Any]) -> int:
    """How many log-probs each token of a chat answer really came with."""
    logprobs = choice.get("logprobs")
    content = (
        cast("dict[str, Any]", logprobs).get("content") if isinstance(logprobs, dict) else None
    )
    first = cast("list[object]", content)[0] if isinstance(content, list) and content else None
    top = cast("dict[str, Any]", first).get("top_logprobs") if isinstance(first, dict) else None
    return len(cast("list[object]", top)) if isinstance(top, list) else 0


def _text(value: object) -> str | None:
    return value[:300] if isinstance(value, str) else None


def _message(body: dict[str, Any]) -> str:
    error = body.get("error", body.get("message", body.get("detail")))
    if isinstance(error, dict):
        return _text(cast("dict[str, Any]", error).get("message")) or ""
    return _text(error) or ""


async def _token_ids(
    client: UpstreamClient, model: str, texts: tuple[str, ...], folder: str | None
) -> dict[str, int] | None:
    """The ids of those texts that are one token; None where nobody can say."""
    found: dict[str, int] = {}
    for text in dict.fromkeys(texts):
        request = {"model": model, "prompt": text, "add_special_tokens": False}
        status, body = await _call(client, "POST", "/tokenize", request)
        tokens = body.get("tokens")
        if status != 200 or not isinstance(tokens, list):
            return await _from_folder(folder, texts)
        ids = cast("list[object]", tokens)
        if len(ids) == 1 and isinstance(ids[0], int):
            found[text] = ids[0]
    return found


async def _from_folder(folder: str | None, texts: tuple[str, ...]) -> dict[str, int] | None:
    if folder is None:
        return None
    try:
        return await asyncio.to_thread(model_folder.token_ids, folder, texts)
    except ConfigError:  # it is the server's folder: what it holds is no fault of ours
        return None


async def _vocabulary_size(folder: str | None) -> int | None:
    """The vocabulary of a model that a server on this machine has read from a folder."""
    if folder is None:
        return None
    try:
        return await asyncio.to_thread(model_folder.vocabulary_size, folder)
    except ConfigError:
        return None


def _is_local(client: UpstreamClient) -> bool:
    return urlsplit(client.base_url).hostname in _LOCAL


async def _call(
    client: UpstreamClient, method: str, path: str, request: dict[str, Any] | None
) -> tuple[int, dict[str, Any]]:
    """Status and body; an empty body for what is no JSON object (a stream, a page).

    A route that answers what cannot be read (a redirect, say) counts as one that is not there.
    """
    payload = None if request is None else orjson.dumps(request)
    try:
        async with client.request(method, path, body=payload) as response:
            status, raw = response.status, await response.read_text(_LONGEST_BODY)
    except UpstreamProtocol as error:
        if request is None:
            raise
        return 404, {"message": str(error)}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    return status, cast("dict[str, Any]", body) if isinstance(body, dict) else {}

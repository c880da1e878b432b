"""What the upstream can do: asked once, before the first turn is captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import orjson

from entrogate.engine.frames import REQUEST_ARGUMENT
from entrogate.errors import UpstreamProtocol
from entrogate.settings import UpstreamSettings
from entrogate.types import Estimator
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.client import UpstreamClient

# Upper bounds grow with ln V: where the size is not known, a size that no common model exceeds.
LARGEST_VOCABULARY = 262_144
_BLANK = ("\n", "\n\n")  # between the reasoning and the answer
_CAPTURE_TRIES, _CAPTURE_TRY_SECONDS = 4, 0.25
_CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "</s>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Of one served model. A token id is None when its text is not a single token."""

    model: str
    max_model_len: int | None
    top_logprobs: int  # 0: the server returns no log-probs, nothing can be captured
    token_ids: bool
    tool_call_token_id: int | None
    tool_call_end_token_id: int | None
    reasoning_start_token_id: int | None
    reasoning_end_token_id: int | None
    control_token_ids: frozenset[int]
    vocab_size: int
    system_fingerprint: str | None
    engine: bool = False  # the plugin in vLLM captures and gates
    blank_token_ids: frozenset[int] = frozenset()
    base_models: frozenset[str] = frozenset()  # every name of the base model

    @property
    def capture(self) -> bool:
        return self.engine or (self.top_logprobs > 0 and self.token_ids)

    @property
    def estimator(self) -> Estimator | None:
        """How the entropies of this upstream's tokens are obtained."""
        if self.engine:
            return Estimator.EXACT
        return Estimator.TOPK if self.capture else None

    @property
    def gate_points(self) -> tuple[str, ...]:
        """Where a call can be held back: before its first token is sampled, or once it is made."""
        if self.tool_call_token_id is None:
            return ()
        return ("engine", "gateway") if self.engine else ("gateway",)

    def problems(self) -> tuple[str, ...]:
        """What does not work with this upstream, one sentence each."""
        found: list[str] = []
        if not self.token_ids and not self.engine:
            found.append("the upstream returns no token ids: turns cannot be captured")
        if self.top_logprobs == 0 and not self.engine:
            found.append("the upstream returns no log-probs: entropy cannot be measured")
        if self.tool_call_token_id is None:
            found.append("the tool-call marker is not one token: calls cannot be suppressed")
        return tuple(found)


async def ask_capabilities(
    client: UpstreamClient,
    settings: UpstreamSettings,
    *,
    vocab_size: int | None = None,
    channel: CaptureChannel | None = None,
) -> Capabilities:
    """Ask the server for its models, its log-prob cap and the ids of the marker tokens.

    With a ``channel``, also whether what the engine captures arrives on it.

    Raises UpstreamUnavailable when it cannot be reached and UpstreamProtocol when it does not
    speak vLLM's API.
    """
    models = await _models(client)
    model = models[0]
    probe = await _probe_logprobs(client, model["id"], settings.top_logprobs)
    opening = settings.tool_call_token
    reasoning_end = settings.reasoning_end_token
    ids = {
        text: await _token_id(client, model["id"], text)
        for text in {
            opening,
            opening.replace("<", "</", 1),
            reasoning_end,
            reasoning_end.replace("</", "<", 1),
            *_CONTROL,
            *_BLANK,
        }
    }
    return Capabilities(
        model=model["id"],
        max_model_len=model.get("max_model_len"),
        top_logprobs=probe.top_logprobs,
        token_ids=probe.token_ids,
        tool_call_token_id=ids[opening],
        tool_call_end_token_id=ids[opening.replace("<", "</", 1)],
        reasoning_start_token_id=ids[reasoning_end.replace("</", "<", 1)],
        reasoning_end_token_id=ids[reasoning_end],
        control_token_ids=frozenset(i for t in _CONTROL if (i := ids[t]) is not None),
        vocab_size=vocab_size or LARGEST_VOCABULARY,
        system_fingerprint=probe.system_fingerprint,
        engine=channel is not None and await _captures(client, model["id"], channel),
        blank_token_ids=frozenset(i for t in _BLANK if (i := ids[t]) is not None),
        base_models=frozenset(str(each["id"]) for each in models if each.get("parent") is None),
    )


async def _captures(client: UpstreamClient, model: str, channel: CaptureChannel) -> bool:
    """Does the engine capture a request, and does what it sends arrive?

    A subscription takes a moment to reach the engine, so it is tried more than once.
    """
    for _ in range(_CAPTURE_TRIES):
        with channel.follow() as followed:
            arguments = {REQUEST_ARGUMENT: channel.argument(followed, None)}
            request = {"model": model, "prompt": "a", "max_tokens": 2, "vllm_xargs": arguments}
            status, body = await _call(client, "POST", "/v1/completions", request)
            if status != 200:
                return False
            if await followed.complete(1, _CAPTURE_TRY_SECONDS):
                n_tokens = body["usage"]["completion_tokens"]
                return followed.choices[0].complete and followed.choices[0].n_tokens == n_tokens
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    top_logprobs: int
    token_ids: bool
    system_fingerprint: str | None


async def _models(client: UpstreamClient) -> list[dict[str, Any]]:
    """The base model under each of its names, then its adapters (they have a ``parent``)."""
    status, body = await _call(client, "GET", "/v1/models", None)
    models = body.get("data") if status == 200 else None
    if not _are_models(models):
        raise UpstreamProtocol(
            f"{client.shown_url}/v1/models answered {status} and no list of models:"
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


async def _probe_logprobs(client: UpstreamClient, model: str, wished: int) -> _Probe:
    """The largest k up to ``wished`` that the server grants, and whether it returns token ids."""
    for top in dict.fromkeys((wished, min(wished, 20), min(wished, 5), 1)):
        request = {
            "model": model,
            "prompt": "a",
            "max_tokens": 1,
            "logprobs": top,
            "return_token_ids": True,
            "temperature": 0,
        }
        status, body = await _call(client, "POST", "/v1/completions", request)
        if status == 200:
            choice = body["choices"][0]
            return _Probe(
                top_logprobs=top if choice.get("logprobs") else 0,
                token_ids=bool(choice.get("token_ids")),
                system_fingerprint=body.get("system_fingerprint"),
            )
        if status != 400:
            raise UpstreamProtocol(f"{client.shown_url}/v1/completions answered {status}")
    return _Probe(top_logprobs=0, token_ids=False, system_fingerprint=None)


async def _token_id(client: UpstreamClient, model: str, text: str) -> int | None:
    request = {"model": model, "prompt": text, "add_special_tokens": False}
    status, body = await _call(client, "POST", "/tokenize", request)
    tokens = body.get("tokens") if status == 200 else None
    return tokens[0] if isinstance(tokens, list) and len(tokens) == 1 else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


async def _call(
    client: UpstreamClient, method: str, path: str, request: dict[str, Any] | None
) -> tuple[int, dict[str, Any]]:
    payload = None if request is None else orjson.dumps(request)
    async with client.request(method, path, body=payload) as response:
        raw = await response.read()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            if response.status == 200:
                raise UpstreamProtocol(f"{client.shown_url}{path} did not answer with JSON")
            body = {}
        return response.status, cast("dict[str, Any]", body)

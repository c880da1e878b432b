"""The LoRAs of a running vLLM: loaded whole or not at all, unloaded, listed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from entrogate.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from entrogate.upstream.client import shown_url
from entrogate.upstream.lora import Adapter

_LOAD_SECONDS = 120.0
_ENABLE = (
    "start vLLM with --enable-lora (and --max-lora-rank) and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1,"
    " or `entrogate serve --model` with --lora"
)


class VllmAdapters:
    """The adapters of one vLLM, over its HTTP API; an asynchronous context manager."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._shown_url = shown_url(url.rstrip("/"))
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=_LOAD_SECONDS,
            trust_env=False,
            verify=httpx.URL(url).scheme != "http",  # loading all authorities takes 20 ms
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def names(self) -> list[str]:
        """What the server serves, base first. Raises UpstreamError."""
        return [str(model["id"]) for model in await self._models()]

    async def load(self, adapter: Adapter, name: str) -> None:
        """Load the LoRA as ``name`` and have it say one token.

        Raises ConfigError when it is of another model (where that can be seen from here),
        UpstreamRefused with vLLM's reason, or another UpstreamError; nothing stays loaded then.
        """
        base = Path(str((await self._models())[0].get("root") or ""))
        if base.is_absolute():
            await asyncio.to_thread(adapter.check_fits, base)
        await self._post(
            "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.folder)}
        )
        try:
            await self._post("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1})
        except UpstreamError:
            with suppress(UpstreamError):
                await self.unload(name)
            raise

    async def unload(self, name: str) -> None:
        """Take ``name`` out of vLLM; what runs on it already goes on. Raises UpstreamError."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def _models(self) -> list[dict[str, Any]]:
        answer = await self._send("GET", "/v1/models")
        if answer.status_code != 200:
            raise _refusal(answer)
        try:
            models = answer.json()["data"]
            if models and all("id" in model for model in models):
                return models
        except (ValueError, KeyError, TypeError):
            pass
        raise UpstreamProtocol(f"{self._shown_url}/v1/models gave no list of models: is this vLLM?")

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = await self._send("POST", path, body)
        if answer.status_code == 404 and "lora_adapter" in path and _is_no_route(answer):
            raise UpstreamRefused(f"this vLLM loads no adapters while it runs: {_ENABLE}")
        if answer.status_code != 200:
            raise _refusal(answer)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        try:
            return await self._client.request(method, path, json=body)
        except httpx.TimeoutException:
            raise UpstreamTimeout(
                f"{self._shown_url} did not answer {path} in {_LOAD_SECONDS:g} s"
            ) from None
        except httpx.HTTPError as error:
            raise UpstreamUnavailable(f"no answer from {self._shown_url}: {error}") from None


def _refusal(answer: httpx.Response) -> UpstreamRefused:
    return UpstreamRefused(f"vLLM refused ({answer.status_code}): {_message(answer)}")


def _is_no_route(answer: httpx.Response) -> bool:
    """FastAPI's own 404, not one about an adapter."""
    return "detail" in answer.text and "error" not in answer.text


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]

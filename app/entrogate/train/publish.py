"""Loads a LoRA into a running vLLM, under a name of its own, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
import httpx
import orjson

from entrogate.errors import ConfigError, UpstreamError, UpstreamUnavailable

_WEIGHTS = "adapter_model.safetensors"
_ENABLE = (
    "start vLLM with --enable-lora (and --max-lora-rank) and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA folder as peft wrote it; ``version`` names its content."""

    folder: Path
    rank: int
    base: str
    version: str

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Raises ConfigError when the folder holds no whole LoRA."""
        weights = folder / _WEIGHTS
        try:
            config = orjson.loads((folder / "adapter_config.json").read_bytes())
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            return cls(
                folder=folder.resolve(),
                rank=int(config["r"]),
                base=str(config["base_model_name_or_path"]),
                version=digest[:12],
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} is no LoRA: it has no {Path(error.filename).name}"
            ) from None
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{folder}: adapter_config.json is unusable: {error!r}") from None


class VllmAdapters:
    """The adapters of one vLLM, over its HTTP API; a context manager."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def names(self) -> list[str]:
        """What the server serves, base first."""
        return [str(model["id"]) for model in self._get("/v1/models")["data"]]

    def publish(self, adapter: Adapter, name: str | None = None) -> str:
        """Load ``adapter`` and have it say one token; returns the name it is served under.

        The name holds the version of the weights, so that a changed adapter never meets the prefix
        cache of another. Raises UpstreamError; nothing stays loaded then.
        """
        names = self.names()
        served = name or f"{names[0]}-{adapter.version}"
        if served in names:
            return served
        body = {"lora_name": served, "lora_path": str(adapter.folder)}
        self._post("/v1/load_lora_adapter", body)
        try:
            self._post("/v1/completions", {"model": served, "prompt": "a", "max_tokens": 1})
        except UpstreamError:
            self.unload(served)
            raise
        return served

    def unload(self, name: str) -> None:
        self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def _get(self, path: str) -> dict[str, Any]:
        return self._checked(self._send("GET", path))

    def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = self._send("POST", path, body)
        if answer.status_code == 404 and "lora_adapter" in path and _is_no_route(answer):
            raise UpstreamError(f"this vLLM loads no adapters while it runs: {_ENABLE}")
        if answer.status_code != 200:
            self._checked(answer)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise UpstreamUnavailable(f"no answer from {self._client.base_url}: {error}") from None

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code != 200:
            raise UpstreamError(f"vLLM refused ({answer.status_code}): {_message(answer)}")
        return answer.json()


@click.command()
@click.argument("adapter", type=click.Path(file_okay=False, path_type=Path))
@click.option("--vllm", "url", required=True, help="URL of a vLLM that serves the base model.")
@click.option("--name", help="Default: the served model's name and the version of the weights.")
@click.option("--api-key", envvar="ENTROGATE_UPSTREAM__API_KEY", help="Of that vLLM.")
def publish(adapter: Path, *, url: str, name: str | None, api_key: str | None) -> None:
    """Load the LoRA in the folder ADAPTER into a running vLLM; print the name it is served as."""
    found = Adapter.read(adapter)
    with VllmAdapters(url, api_key) as adapters:
        click.echo(adapters.publish(found, name))


def _is_no_route(answer: httpx.Response) -> bool:
    """FastAPI's own 404, not one about an adapter."""
    return "detail" in answer.text and "error" not in answer.text


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]

"""``entrogate publish``, ``rollback`` and ``weights``: trained LoRAs in and out of service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx

from entrogate.errors import ConfigError, UpstreamError, UpstreamUnavailable
from entrogate.ranges import FiniteRange
from entrogate.settings import ServeSettings
from entrogate.store.read.show import table
from entrogate.upstream.adapters import VllmAdapters
from entrogate.upstream.lora import Adapter

_SECONDS = 300.0  # vLLM reads the weights before it answers

gateway_option: Callable[..., Any] = click.option(
    "--gateway",
    default=f"http://127.0.0.1:{ServeSettings().port}",
    show_default=True,
    help="URL of the gateway, on this machine.",
)


@click.command()
@click.argument("adapter", required=False, type=click.Path(path_type=Path))
@gateway_option
@click.option("--share", type=FiniteRange(0, 1), help="Of new trajectories; default 0.")
@click.option("--promote", metavar="VERSION", help="Give all to a version that is published.")
@click.option("--name", help="Default: the served model's name and the version of the weights.")
@click.option("--vllm", help="Load it into this vLLM, without a gateway.")
@click.option("--api-key", envvar="ENTROGATE_UPSTREAM__API_KEY", help="Of that vLLM.")
def publish(
    adapter: Path | None,
    *,
    gateway: str,
    share: float | None,
    promote: str | None,
    name: str | None,
    vllm: str | None,
    api_key: str | None,
) -> None:
    """Put the LoRA in the folder ADAPTER into service; print the name that it is served under.

    With --share requests for the base model go to it; without, only those that ask for it by name.
    """
    if (adapter is None) == (promote is None):
        raise click.UsageError("give one of ADAPTER and --promote VERSION")
    if promote is not None:
        if vllm is not None or share is not None or name is not None:
            raise click.UsageError("--promote goes with --gateway alone")
        body = {"share": 1.0}
        answer = _ask(gateway, "POST", f"/admin/weights/{promote}/share", body)
        click.echo(answer["name"])
    elif adapter is not None and vllm is not None:
        if share is not None:
            raise click.UsageError("a share needs a gateway: leave out --vllm")
        click.echo(asyncio.run(_load(Adapter.read(adapter), vllm, name, api_key)))
    elif adapter is not None:
        body = {"folder": str(Adapter.read(adapter).folder), "share": share, "name": name}
        click.echo(_ask(gateway, "POST", "/admin/weights", body)["name"])


@click.command()
@click.argument("version", required=False)
@gateway_option
def rollback(version: str | None, *, gateway: str) -> None:
    """Take VERSION (default: what was published last) out of service; print its name.

    It gets no request from now on. vLLM unloads it after its last one.
    """
    if version is None:
        serving = [e for e in _weights(gateway) if "name" in e and e["state"] != "draining"]
        if not serving:
            raise ConfigError("nothing is published that could be rolled back")
        version = str(serving[-1]["version"])
    click.echo(_ask(gateway, "DELETE", f"/admin/weights/{version}")["name"])


@click.command()
@gateway_option
def weights(*, gateway: str) -> None:
    """One line for each version in service, the base model first."""
    rows = [["version", "share", "state", "in flight", "name", ""]]
    for each in _weights(gateway):
        share = f"{each['share']:.0%}" + (" (stable)" if each["stable"] else "")
        name, problem = each.get("name") or "-", each.get("problem") or ""
        rows.append([each["version"], share, each["state"], str(each["in_flight"]), name, problem])
    for line in table(rows):
        click.echo(line)


async def _load(adapter: Adapter, url: str, name: str | None, api_key: str | None) -> str:
    async with VllmAdapters(url, api_key) as adapters:
        names = await adapters.names()
        served = name or f"{names[0]}-{adapter.version}"
        if served not in names:
            await adapters.load(adapter, served)
        return served


def _weights(gateway: str) -> list[dict[str, Any]]:
    return _ask(gateway, "GET", "/admin/weights")["data"]


def _authorisation() -> dict[str, str]:
    """An admin's key, where the gateway wants one: an option would show it to other users."""
    key = os.environ.get("ENTROGATE_API_KEY")
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _ask(
    gateway: str, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The gateway's answer; its refusal becomes the error that is shown."""
    try:
        answer = httpx.request(
            method,
            gateway.rstrip("/") + path,
            json=body,
            headers=_authorisation(),
            timeout=_SECONDS,
            trust_env=False,
        )
        content = answer.json()
        if answer.status_code != 200:
            raise UpstreamError(content["error"]["message"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UpstreamUnavailable(f"no answer from the gateway {gateway}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise UpstreamError(f"what answers at {gateway} is no Entrogate gateway") from None
    return content

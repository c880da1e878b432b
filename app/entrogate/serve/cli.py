"""``entrogate serve``: settings from options and environment, vLLM if asked for, the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Generator, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from entrogate.errors import ConfigError
from entrogate.extras import LAB, install_command
from entrogate.ranges import FiniteRange
from entrogate.serve.app import create_app
from entrogate.serve.gateway import Gateway
from entrogate.serve.hangup import reloads_on_hangup
from entrogate.serve.listening import listening
from entrogate.serve.policies import Policies
from entrogate.serve.protocol import http_protocol
from entrogate.serve.sites import is_loopback
from entrogate.settings import ServeSettings, Settings
from entrogate.upstream.client import shown_url
from entrogate.upstream.managed import ManagedVllm

_PREFIX = "ENTROGATE_"
_LAST_WORDS_SECONDS = 2.0  # for the ends of answers to be sent and recorded
_PLACES = {
    "upstream_url": ("upstream", "url"),
    "upstream_api_key": ("upstream", "api_key"),
    "model": ("managed", "model"),
    "served_model_name": ("managed", "served_model_name"),
    "lora": ("managed", "lora"),
    "max_lora_rank": ("managed", "max_lora_rank"),
    "reasoning_parser": ("managed", "reasoning_parser"),
    "tool_call_parser": ("managed", "tool_call_parser"),
    "vllm_args": ("managed", "extra_args"),
    "policy": ("gate", "policy"),
    "trial_policy": ("gate", "trial_policy"),
    "trial_share": ("gate", "trial_share"),
    "watch_policy": ("gate", "watch_policy"),
    "mode": ("gate", "mode"),
    "allow_mode_header": ("gate", "allow_mode_header"),
    "shadow_share": ("shadow", "share"),
    "shadow_grader": ("shadow", "grader"),
    "store_url": ("store", "url"),
    "durability": ("store", "durability"),
    "export_to": ("export", "to"),
    "export_every": ("export", "every_seconds"),
    "host": ("serve", "host"),
    "port": ("serve", "port"),
    "insecure": ("access", "insecure"),
    "tls_cert": ("serve", "tls_cert"),
    "tls_key": ("serve", "tls_key"),
    "tls_client_ca": ("serve", "tls_client_ca"),
    "allowed_hosts": ("serve", "allowed_hosts"),
    "cors_origins": ("serve", "cors_origins"),
    "max_concurrency": ("serve", "max_requests"),
    "request_timeout": ("serve", "request_timeout_seconds"),
    "otlp_endpoint": ("tracing", "otlp_endpoint"),
    "log_level": ("serve", "log_level"),
}
"""Where the settings tree has what an option says."""


@click.command()
@click.option("--upstream", "upstream_url", help="Base URL of a running vLLM, without /v1.")
@click.option("--upstream-api-key", envvar="ENTROGATE_UPSTREAM__API_KEY", help="Its API key.")
@click.option("--model", help="Start a vLLM with this model folder or name ('almanac': bundled).")
@click.option("--served-model-name", help="Name of the managed model in the API.")
@click.option("--lora", is_flag=True, default=None, help="The managed vLLM can be given LoRAs.")
@click.option("--max-lora-rank", type=click.IntRange(1), help="Of those LoRAs (default 16).")
@click.option("--reasoning-parser", help="Of the managed vLLM; 'none', or by the tokenizer.")
@click.option("--tool-call-parser", help="Of the managed vLLM; 'none', or by the tokenizer.")
@click.option("--vllm-arg", "vllm_args", multiple=True, help="Passed on to the managed vLLM.")
@click.option("--policy", help="Bundled policy (observe, balanced, …) or a YAML file.")
@click.option("--trial-policy", help="Second policy, for a share of new trajectories.")
@click.option(
    "--trial-share",
    type=FiniteRange(0, 1),
    help="Share of new trajectories under --trial-policy (default 0).",
)
@click.option(
    "--watch-policy", is_flag=True, default=None, help="Reload policy files when they change."
)
@click.option(
    "--mode",
    type=click.Choice(["observe", "enforce", "explore"]),
    help="Overrides the policies' modes.",
)
@click.option("--allow-mode-header", is_flag=True, default=None, help="Clients may set the mode.")
@click.option(
    "--shadow-share",
    type=FiniteRange(0, 1),
    help="Share of trajectories that get shadow answers.",
)
@click.option("--shadow-grader", help="Scores shadows: package.module:function or a URL.")
@click.option("--store", "store_url", help="Database URL, such as sqlite:///entrogate.db.")
@click.option("--durability", type=click.Choice(["full", "normal", "off"]), help="Of the store.")
@click.option("--export-to", help="Dataset to add to while serving: a folder or any fsspec URL.")
@click.option("--export-every", type=FiniteRange(), help="Seconds between exports (default 300).")
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (default 8400).")
@click.option("--insecure", is_flag=True, default=None, help="Listen to all without API keys.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate (PEM) for HTTPS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key.")
@click.option(
    "--tls-client-ca", type=click.Path(path_type=Path), help="CA of clients' certificates."
)
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="Name in the Host header.")
@click.option("--cors-origin", "cors_origins", multiple=True, help="Site whose pages may ask.")
@click.option("--max-concurrency", type=click.IntRange(1), help="Requests at a time; others: 503.")
@click.option(
    "--request-timeout", type=FiniteRange(), help="Seconds that a whole request may take."
)
@click.option("--otlp-endpoint", help="Collector that takes traces, e.g. http://127.0.0.1:4318.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
def serve(**options: Any) -> None:
    """Serve the OpenAI API in front of a vLLM (--upstream URL) or a model (--model PATH)."""
    settings = _settings(options)
    logging.basicConfig(
        level=settings.serve.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _check_upstream(settings)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except asyncio.CancelledError:  # SIGTERM while vLLM was starting
        sys.exit(128 + signal.SIGTERM)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop halves what a socket operation costs; it does not exist for every platform."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _settings(options: dict[str, Any]) -> Settings:
    """Options win over the environment; one error line for what cannot be used."""
    tree: dict[str, dict[str, Any]] = {}
    for option, (branch, name) in _PLACES.items():
        if options[option] not in (None, ()):
            tree.setdefault(branch, {})[name] = options[option]
    if tree.get("managed", {}).get("model") == "almanac":
        tree["managed"]["model"] = str(_bundled_model())
        tree["managed"].setdefault("served_model_name", "almanac")
    _check_names(os.environ)
    try:
        return Settings(**tree)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise _refused_setting(error) from None
    except SettingsError:
        whole = [_PREFIX + branch.upper() for branch in Settings.model_fields]
        listed = [*whole, "ENTROGATE_MANAGED__EXTRA_ARGS"]
        given = ", ".join(sorted(name for name in os.environ if name.upper() in listed))
        raise ConfigError(
            f"{given}: want JSON; a single setting is named as in ENTROGATE_STORE__URL"
        ) from None


def _refused_setting(error: ValidationError) -> ConfigError:
    """The first thing that pydantic found wrong, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        variable = _PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        return ConfigError(f"no setting {where} ({variable})")
    return ConfigError(f"setting {where}: {first['msg']}")


def _check_names(environment: Iterable[str]) -> None:
    """Raises ConfigError for a variable of a branch that does not exist.

    Only for two underscores: Kubernetes sets ENTROGATE_PORT for a Service `entrogate`.
    """
    branches = [name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        branch, _, name = variable.upper().removeprefix(_PREFIX).partition("__")
        if variable.upper().startswith(_PREFIX) and name and branch not in branches:
            near = get_close_matches(branch, branches, 1)
            hint = f"; did you mean {_PREFIX}{near[0]}__{name}?" if near else ""
            raise ConfigError(f"no setting {variable}{hint}")


def _bundled_model() -> Path:
    """The folder of the model that comes with entrogate-lab."""
    lab = find_spec("entrogate_lab")
    if lab is None or lab.origin is None:
        raise ConfigError(f"--model almanac needs the bundled model: {install_command(LAB)}")
    return Path(lab.origin).parent / "almanac" / "model"


def _check_upstream(settings: Settings) -> None:
    url, model = settings.upstream.url, settings.managed.model
    if (url is None) == (model is None):
        raise ConfigError("give one of --upstream URL and --model PATH")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"--upstream is {shown_url(url)!r}; want a URL such as http://127.0.0.1:8000"
        )
    if url is not None and url.rstrip("/").endswith("/v1"):
        raise ConfigError(f"--upstream is {shown_url(url)!r}; want it without /v1")
    ignored = settings.managed.model_fields_set - {"model"}
    if url is not None and ignored:
        named = ", ".join(sorted(map(_managed_option, ignored)))
        raise ConfigError(f"{named}: for a vLLM that --model starts, not with --upstream")


def _managed_option(name: str) -> str:
    """How a setting of the managed vLLM is given."""
    for option, place in _PLACES.items():
        if place == ("managed", name):
            return "--vllm-arg" if option == "vllm_args" else "--" + option.replace("_", "-")
    return f"{_PREFIX}MANAGED__{name.upper()}"


async def _serve(settings: Settings) -> None:
    managed = None
    if settings.managed.model is not None:
        managed = ManagedVllm(settings.managed, traces_url=settings.tracing.traces_url)
    tls = _tls(settings.serve)
    app = create_app(settings, managed=managed)
    gateway: Gateway = app.state.gateway
    with contextlib.ExitStack() as held:
        try:
            _check_access(settings, gateway)
            sockets = held.enter_context(listening(settings.serve.host, settings.serve.port))
        except ConfigError:
            gateway.store.close()
            raise
        await _serve_on(sockets, app, tls, settings)


async def _serve_on(
    sockets: list[socket.socket], app: FastAPI, tls: dict[str, Any], settings: Settings
) -> None:
    gateway: Gateway = app.state.gateway
    managed: ManagedVllm | None = app.state.managed
    config = uvicorn.Config(
        app,
        host=settings.serve.host,
        port=settings.serve.port,
        log_level="warning",
        access_log=False,
        # Answers have their end by then; what hangs all the same is cancelled.
        timeout_graceful_shutdown=math.ceil(settings.serve.drain_seconds + _LAST_WORDS_SECONDS),
        timeout_keep_alive=settings.serve.keep_alive_seconds,
        ws="none",
        http=http_protocol(
            head_timeout_seconds=settings.serve.body_timeout_seconds,
            on_refused=gateway.metrics.record_refusal,
        ),
        **tls,
    )
    server = _Server(config)

    def on_leave() -> None:
        app.state.drain.begin(settings.serve.drain_seconds)

    server.on_leave = on_leave
    reloads_on_hangup(gateway.policies.reload_soon)
    try:
        if managed is not None:
            await _start(managed)
        _say(settings, gateway.policies)
        with _exits(server):
            await server.serve(sockets=sockets)
    finally:
        if managed is not None:
            await managed.stop()
    if not server.started:
        raise ConfigError("the server did not start: the lines above say why")
    if server.interrupted:
        raise KeyboardInterrupt


def _check_access(settings: Settings, gateway: Gateway) -> None:
    """Without a key only this machine is listened to. Raises ConfigError."""
    host = settings.serve.host
    open_ = settings.access.key is None and not gateway.store.has_keys()
    if open_ and not settings.access.insecure and not is_loopback(host):
        raise ConfigError(
            f"--host {host} is open to other machines and there is no API key: make one"
            " (entrogate keys create), or say --insecure if something in front checks who asks"
        )


def _tls(serve: ServeSettings) -> dict[str, Any]:
    """uvicorn's options. Raises ConfigError for files that cannot be used."""
    if serve.tls_cert is None and serve.tls_key is None and serve.tls_client_ca is None:
        return {}
    if serve.tls_cert is None or serve.tls_key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    options: dict[str, Any] = {
        "ssl_certfile": str(serve.tls_cert),
        "ssl_keyfile": str(serve.tls_key),
    }
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(serve.tls_cert, serve.tls_key)
        if serve.tls_client_ca is not None:
            context.load_verify_locations(serve.tls_client_ca)
            options["ssl_ca_certs"] = str(serve.tls_client_ca)
            options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"TLS: the certificate or its key cannot be used: {error}") from None
    return options


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to us.

    Its own handling raises the signal again when it ends, which would kill this process before the
    managed vLLM is stopped.
    """

    interrupted = False
    on_leave: Callable[[], None] | None = None  # not ready from then on

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def leave(self, sig: signal.Signals) -> None:
        """Stop serving; a second Ctrl-C does not wait for open requests."""
        self.interrupted = self.interrupted or sig is signal.SIGINT
        if self.on_leave is not None:
            self.on_leave()
        self.handle_exit(sig, None)


@contextlib.contextmanager
def _exits(server: _Server) -> Generator[None]:
    """While the block runs, SIGTERM and Ctrl-C end the server in order."""
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, server.leave, sig)
    yield


async def _start(managed: ManagedVllm) -> None:
    """Wait for vLLM; Ctrl-C and SIGTERM end the wait, and with it vLLM."""
    click.echo(f"starting vLLM (log: {managed.log_file})", err=True)
    if managed.parsers is not None:
        for name, chosen in managed.parsers.described().items():
            click.echo(f"  {name.replace('_', ' ')}: {chosen}", err=True)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    await managed.start(_progress)
    loop.remove_signal_handler(signal.SIGTERM)


def _progress(seconds: float, line: str) -> None:
    click.echo(f"  {seconds:4.0f} s  {line[:100]}", err=True)


def _say(settings: Settings, policies: Policies) -> None:
    scheme = "http" if settings.serve.tls_cert is None else "https"
    where = f"{scheme}://{settings.serve.host}:{settings.serve.port}/v1"
    arms = policies.arms
    told = f"policy {arms.main.name}, mode {policies.mode_of(arms.main)}"
    if arms.trial is not None:
        told += (
            f"; on trial for {arms.share:.3g} of new trajectories: policy {arms.trial.name},"
            f" mode {policies.mode_of(arms.trial)}"
        )
    click.echo(f"Entrogate on {where} ({told})", err=True)

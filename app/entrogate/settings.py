"""All settings, read once by the command line; every part receives its own branch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from entrogate.types import Mode


def _split(value: Any) -> Any:
    """A list from the environment: its parts between commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Names, in the environment with commas between them."""


class _Branch(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UpstreamSettings(_Branch):
    """The vLLM that serves the tokens. ``url`` has no ``/v1`` suffix."""

    url: str | None = None
    api_key: SecretStr | None = None
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    read_timeout_seconds: float = Field(default=600.0, gt=0)
    max_connections: int = Field(default=1024, ge=1)
    answer_limit_bytes: int = Field(default=256 * 2**20, ge=1024)  # of one answer, streamed or not
    watch_interval_seconds: float = Field(default=5.0, gt=0)  # is it still the same model?
    top_logprobs: int = Field(default=5, ge=1, le=1000)  # why 5: docs/performance.md
    tool_call_token: str = "<tool_call>"
    reasoning_end_token: str = "</think>"
    vocab_size: int | None = Field(default=None, ge=2)  # of a remote model; tightens upper bounds
    # Where the plugin in vLLM sends what it captures: an address, `off`, or `auto` (the default
    # address where vLLM is on this machine). TCP needs the secret that vLLM's side has, too.
    capture: str = "auto"
    capture_secret: SecretStr | None = Field(default=None, min_length=16)


class ManagedSettings(_Branch):
    """A vLLM that Entrogate starts itself (``--model``)."""

    model: str | None = None
    served_model_name: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    # `auto`: by the tokens of the model's tokenizer; `none`, or empty: none.
    tool_call_parser: str | None = "auto"
    reasoning_parser: str | None = "auto"
    lora: bool = False  # adapters can be published while it runs
    max_lora_rank: int = Field(default=16, ge=1)
    extra_args: tuple[str, ...] = ()
    startup_timeout_seconds: float = Field(default=900.0, gt=0)
    restart_limit: int = Field(default=5, ge=0)
    log_file: Path | None = None


class StoreSettings(_Branch):
    """Where trajectories are kept. ``durability``: ``full`` survives a power cut, ``normal`` a
    killed process, ``off`` acknowledges before the commit."""

    url: str = "sqlite:///entrogate.db"
    durability: Literal["full", "normal", "off"] = "normal"
    commit_interval_seconds: float = Field(default=0.002, ge=0, le=1)
    queue_limit: int = Field(default=10_000, ge=1)
    patience_seconds: float = Field(default=10.0, ge=0)
    head_cache: int = Field(default=20_000, ge=1)


class GateSettings(_Branch):
    """Which policies decide, and whether their decisions are carried out.

    ``require_calibration``: a turn whose policy is not calibrated for the model and weights that
    answer it is only observed. ``fuse_interval_seconds``: how often fuses are computed from audits.
    """

    policy: str = "observe"  # a bundled name or the path of a YAML file
    mode: Mode | None = None  # overrides the policies' own modes
    allow_mode_header: bool = False  # lets a client choose with `x-entrogate-mode`
    require_calibration: bool = False
    fuse_interval_seconds: float = Field(default=5.0, gt=0)
    trial_policy: str | None = None  # a second policy, for a share of new trajectories
    trial_share: float = Field(default=0.0, ge=0, le=1)
    watch_policy: bool = False  # reload policy files when they change
    watch_interval_seconds: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _a_share_has_a_policy(self) -> Self:
        if self.trial_share and self.trial_policy is None:
            raise ValueError(
                f"a trial_share of {self.trial_share:g} without a trial_policy: name the policy"
            )
        return self


class ShadowSettings(_Branch):
    """Answers without the call (docs/shadows.md), for a ``share`` of the trajectories.

    ``tools``: the shares of single tools. No shadow starts while ``busy_turns`` client turns are
    running; beyond ``queue_limit`` waiting ones, shadows are dropped. ``grader``: a Python function
    as ``module:function``, or an http(s) URL, that scores shadows without gold.
    """

    share: float = Field(default=0.0, ge=0, le=1)
    tools: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    max_tokens: int = Field(default=256, ge=1)
    concurrency: int = Field(default=2, ge=1)
    busy_turns: int = Field(default=64, ge=1)
    queue_limit: int = Field(default=256, ge=1)
    grader: str | None = None
    grader_timeout_seconds: float = Field(default=30.0, gt=0)

    @field_validator("grader")
    @classmethod
    def _names_one(cls, grader: str | None) -> str | None:
        if grader is None:
            return None
        parts = urlsplit(grader)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
        module, _, function = grader.partition(":")
        is_function = function.isidentifier() and all(map(str.isidentifier, module.split(".")))
        if not (is_url or is_function):
            raise ValueError("want a Python function as package.module:function, or an http(s) URL")
        return grader


class WeightsSettings(_Branch):
    """Published weights: how often store and vLLM are looked at, how long a roll back waits."""

    poll_interval_seconds: float = Field(default=2.0, gt=0)
    drain_timeout_seconds: float = Field(default=300.0, ge=0)


class ExportSettings(_Branch):
    """A dataset that the server adds to while it runs (docs/export.md). ``to``: a folder or a URL;
    None: no export. ``settle_seconds`` after its last turn or feedback a trajectory is final."""

    to: str | None = None
    every_seconds: float = Field(default=300.0, ge=1)
    settle_seconds: float = Field(default=30.0, ge=1)


class TracingSettings(_Branch):
    """Where OpenTelemetry traces go (docs/monitoring.md); None: there are none."""

    otlp_endpoint: str | None = None

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_url(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("want the URL of a collector such as http://127.0.0.1:4318")
        return endpoint

    @property
    def traces_url(self) -> str | None:
        """What spans are posted to."""
        if self.otlp_endpoint is None:
            return None
        bare = self.otlp_endpoint.rstrip("/")
        return bare if bare.endswith("/v1/traces") else f"{bare}/v1/traces"


class ServeSettings(_Branch):
    """The HTTP server itself."""

    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    # Which names a client may call this server by; None: see `serve.sites`.
    allowed_hosts: Names | None = None
    cors_origins: Names = ()  # sites whose pages may ask, such as https://chat.example.com
    body_limit_bytes: int = Field(default=32 * 2**20, ge=1024)
    body_budget_bytes: int = Field(default=256 * 2**20, ge=1024)  # of all requests together
    body_timeout_seconds: float = Field(default=30.0, gt=0)  # for a request to arrive whole
    keep_alive_seconds: int = Field(default=75, ge=1)  # of a connection without a request
    drain_seconds: float = Field(default=30.0, ge=0)  # for running requests, after SIGTERM
    request_timeout_seconds: float | None = Field(default=None, gt=0)  # of a whole request
    max_requests: int | None = Field(default=None, ge=1)  # at a time; more are refused
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # clients must have a certificate of this authority
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name != "*" and ({"/", " "} & set(name) or "*" in name.removeprefix("*.")):
                raise ValueError(
                    f"{name!r} is no host; want a name without a port such as gateway.example.com,"
                    " *.example.com for all below it, or * for every name"
                )
        return names

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or parts.path):
                raise ValueError(
                    f"{origin!r} is no origin; want scheme and host such as"
                    " https://chat.example.com, or * for every site (needs API keys)"
                )
        return origins


class AccessSettings(_Branch):
    """API keys (docs/access.md). ``key``: one with every scope, beside those of the store;
    ``insecure``: listen to other machines although there is no key; ``metrics_token``: opens
    ``/metrics`` and nothing else."""

    key: SecretStr | None = Field(default=None, min_length=16)
    insecure: bool = False
    protect_metrics: bool = True  # once there is a key
    metrics_token: SecretStr | None = Field(default=None, min_length=16)
    session_seconds: float = Field(default=12 * 3600.0, gt=0)  # of a browser's log-in
    # Signs sessions; None: made from ``key``, or at the start. Replicas need the same.
    session_secret: SecretStr | None = Field(default=None, min_length=32)
    refresh_seconds: float = Field(default=2.0, gt=0)


class Settings(BaseSettings):
    """The tree. Sources, strongest first: command line, environment (``ENTROGATE_STORE__URL``)."""

    model_config = SettingsConfigDict(
        env_prefix="ENTROGATE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    upstream: UpstreamSettings = UpstreamSettings()
    managed: ManagedSettings = ManagedSettings()
    store: StoreSettings = StoreSettings()
    gate: GateSettings = GateSettings()
    shadow: ShadowSettings = ShadowSettings()
    weights: WeightsSettings = WeightsSettings()
    export: ExportSettings = ExportSettings()
    serve: ServeSettings = ServeSettings()
    access: AccessSettings = AccessSettings()
    tracing: TracingSettings = TracingSettings()

"""The app factory: parts are made from settings, opened with the server and closed with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from entrogate import __version__
from entrogate.engine.channel import default_address
from entrogate.engine.environment import ADDRESS_VARIABLE
from entrogate.errors import ConfigError, EntrogateError, StoreError, UpstreamError
from entrogate.extras import install_command
from entrogate.observe.metrics import Metrics
from entrogate.serve.access import AccessControl, check_routes
from entrogate.serve.admin import admin_routes
from entrogate.serve.chat import chat
from entrogate.serve.docs import DOCS
from entrogate.serve.door import CHAT_DOOR, MESSAGES_ROUTE, RESPONSES_ROUTE, envelope_of
from entrogate.serve.drain import Drain
from entrogate.serve.erasing import router as erasing
from entrogate.serve.exporting import PeriodicExport, check_export
from entrogate.serve.fuses_admin import fuse_routes
from entrogate.serve.gateway import Gateway
from entrogate.serve.graders import Grader, load_grader
from entrogate.serve.keyring import Keyring
from entrogate.serve.messages import count_tokens, messages
from entrogate.serve.openapi import describe_api
from entrogate.serve.passthrough import PASSED, forward
from entrogate.serve.policies import Policies
from entrogate.serve.policies_admin import policy_routes
from entrogate.serve.policy_files import PolicyFiles
from entrogate.serve.responses import erase_response, response, responses
from entrogate.serve.routing import Route
from entrogate.serve.status import Checks, status_routes
from entrogate.serve.token_texts import TokenTexts
from entrogate.serve.trajectories import router
from entrogate.serve.viewer import VIEWER
from entrogate.serve.weights_publisher import WeightsPublisher
from entrogate.settings import Settings, ShadowSettings
from entrogate.store import Store
from entrogate.upstream.adapters import VllmAdapters
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.client import UpstreamClient
from entrogate.upstream.managed import ManagedVllm
from entrogate.wire.errors import describe, error_body

if TYPE_CHECKING:
    from entrogate.observe.tracing import Tracing

TITLE = "Entrogate"
_log = logging.getLogger("entrogate.serve")


def create_app(settings: Settings, *, managed: ManagedVllm | None = None) -> FastAPI:
    """The gateway for ``settings``; ``managed`` is a vLLM that the caller starts and stops.

    Opens the store, loads the policy and looks at the target of the export, so a bad one fails
    here (StoreError, ConfigError) and not at the first request.
    """
    url = managed.url if managed is not None else settings.upstream.url
    if url is None:
        raise ConfigError("no upstream: give --upstream URL or --model PATH")
    gateway = _gateway(settings, url, managed)
    publisher = _publisher(gateway, url)
    keyring = Keyring(settings.access, gateway.store)
    exporting = _exporting(gateway)
    app = FastAPI(
        title=TITLE,
        version=__version__,
        lifespan=lambda _: _running(gateway, publisher, keyring, exporting),
        docs_url=None,
        redoc_url=None,
    )
    drain = Drain()
    app.state.gateway = gateway
    app.state.managed = managed
    app.state.publisher = publisher
    app.state.keyring = keyring
    app.state.drain = drain
    app.state.checks = Checks(gateway, managed)
    app.state.token_texts = TokenTexts(gateway)
    add_routes(app)
    app.add_middleware(
        AccessControl,
        keyring=keyring,
        settings=settings.serve,
        metrics=gateway.metrics,
        drain=drain,
    )
    if gateway.tracing is not None:
        from entrogate.observe.tracing import TracedRequests

        app.add_middleware(TracedRequests, tracing=gateway.tracing)  # around all the others
    _add_error_handlers(app)
    return app


def _gateway(settings: Settings, url: str, managed: ManagedVllm | None) -> Gateway:
    """What every request uses. The store is opened last: nothing after it fails."""
    metrics = Metrics()
    channel = _channel(settings, url, managed, metrics)
    files = PolicyFiles(settings.gate, can_force=channel is not None)

    def committed(seconds: float, _turns: int) -> None:
        metrics.observe_commit(seconds)

    def lost(_error: StoreError, turns: int) -> None:
        metrics.record_store_error("lost", turns)

    tracing = _tracing(settings, metrics)
    grader = _grader(settings.shadow)
    store = Store.open(settings.store, alone=True, on_commit=committed, on_loss=lost)
    gateway = Gateway(
        settings=settings,
        client=UpstreamClient(settings.upstream, url),
        store=store,
        policies=Policies(settings.gate, files=files, store=store, metrics=metrics),
        metrics=metrics,
        channel=channel,
        grader=grader,
        tracing=tracing,
        vocab_size=managed.vocab_size if managed is not None else settings.upstream.vocab_size,
    )
    metrics.watch_store_queue(
        lambda: store.queue_depth, lambda: store.deferred, limit=settings.store.queue_limit
    )
    return gateway


@asynccontextmanager
async def _running(
    gateway: Gateway,
    publisher: WeightsPublisher,
    keyring: Keyring,
    exporting: PeriodicExport | None,
) -> AsyncGenerator[None]:
    """Opens the parts with the server and closes them with it, the store last."""
    await gateway.store.start()
    try:
        async with (
            gateway.policies.running(),
            gateway.tracing or nullcontext(),
            gateway.client,
            gateway.channel or nullcontext(),
            exporting or nullcontext(),
        ):
            await _greet(gateway)
            async with (
                gateway.watch.running(),
                publisher.running(),
                keyring.running(),
                gateway.grading.running(),
                gateway.shadows.running(),
                gateway.fuses.running(),
            ):
                yield
            if gateway.background:
                await asyncio.wait(gateway.background, timeout=10)
    finally:
        await gateway.store.aclose()


def add_routes(app: FastAPI) -> None:
    """All routes and the document of them. Who may use them is said in `access.SCOPES`."""
    doors = (
        Route(CHAT_DOOR.route, chat, methods=["POST"]),
        Route(RESPONSES_ROUTE, responses, methods=["POST"]),
        Route(f"{RESPONSES_ROUTE}/{{response_id}}", response, methods=["GET"]),
        Route(f"{RESPONSES_ROUTE}/{{response_id}}", erase_response, methods=["DELETE"]),
        Route(MESSAGES_ROUTE, messages, methods=["POST"]),
        Route(f"{MESSAGES_ROUTE}/count_tokens", count_tokens, methods=["POST"]),
        *(Route(path, forward, methods=[method]) for path, method in PASSED),
    )
    # Not include_router: FastAPI 0.137 and later keeps what it includes as one object without a
    # path, and access control has to see every route.
    administered = (admin_routes, fuse_routes, policy_routes)
    documented = (router, erasing, status_routes, *administered)
    for part in (doors, VIEWER, DOCS, *(each.routes for each in documented)):
        app.router.routes.extend(part)
    check_routes(app.routes)
    describe_api(app)


def _channel(
    settings: Settings, url: str, managed: ManagedVllm | None, metrics: Metrics
) -> CaptureChannel | None:
    """Where the plugin in vLLM, if there is one, sends what it captures."""
    wished = settings.upstream.capture
    secret = settings.upstream.capture_secret
    address, is_managed = wished, wished == "auto" and managed is not None
    if wished == "auto":
        if managed is not None:
            address = managed.capture_address
        elif urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1"):
            address = default_address()
        else:
            return None
    if wished == "off":
        return None
    return CaptureChannel(
        address,
        # A managed vLLM's socket is in a folder of our own: it is given no secret.
        None if secret is None or is_managed else secret.get_secret_value(),
        on_malformed=metrics.record_malformed_capture,
    )


def _tracing(settings: Settings, metrics: Metrics) -> Tracing | None:
    url = settings.tracing.traces_url
    if url is None:
        return None
    try:
        from entrogate.observe.tracing import Tracing
    except ImportError as error:
        raise ConfigError(f"--otlp-endpoint needs {install_command('otel')}: {error}") from None
    return Tracing(url, on_lost=metrics.record_lost_spans)


def _grader(settings: ShadowSettings) -> Grader | None:
    """None: there is none. ConfigError where it cannot be loaded."""
    if settings.grader is None:
        return None
    return load_grader(settings.grader, timeout_seconds=settings.grader_timeout_seconds)


def _exporting(gateway: Gateway) -> PeriodicExport | None:
    """None where nothing is exported. ConfigError where it cannot be; the store is closed then."""
    settings, metrics = gateway.settings, gateway.metrics
    if settings.export.to is None:
        return None
    try:
        check_export(settings)
    except ConfigError:
        gateway.store.close()
        raise
    return PeriodicExport(
        settings,
        on_failure=metrics.record_export_failure,
        on_progress=metrics.record_export_progress,
    )


def _publisher(gateway: Gateway, url: str) -> WeightsPublisher:
    async def base_model() -> str:
        return (await gateway.capabilities()).model

    key = gateway.settings.upstream.api_key
    return WeightsPublisher(
        store=gateway.store,
        adapters=VllmAdapters(url, None if key is None else key.get_secret_value()),
        weights=gateway.weights,
        settings=gateway.settings.weights,
        base_model=base_model,
    )


async def _greet(gateway: Gateway) -> None:
    """Ask the upstream what it can do; one that is not there yet is asked again later."""
    try:
        found = await gateway.capabilities()
    except UpstreamError as error:
        _log.warning("upstream.not_ready %s", error)
    else:
        _log.info(
            "upstream.ready model=%s estimator=%s gate_points=%s top_logprobs=%d vocab<=%d",
            found.model,
            found.estimator,
            ",".join(found.gate_points) or "none",
            found.top_logprobs,
            found.vocab_size,
        )
        if not found.engine:
            _explain_no_engine(gateway)


def _explain_no_engine(gateway: Gateway) -> None:
    """Say what is missing where somebody asked for it."""
    if gateway.channel is not None and gateway.settings.upstream.capture != "auto":
        _log.warning(
            "upstream.limited nothing that the engine captures arrives from %s: is entrogate"
            " installed in vLLM's environment, is this its %s, and is the secret the same?",
            gateway.channel.address,
            ADDRESS_VARIABLE,
        )
    if any(policy.force is not None for policy in gateway.policies.in_force()):
        _log.warning("upstream.limited `force` needs the gate inside the engine: it does nothing")


def _add_error_handlers(app: FastAPI) -> None:
    def handler(
        describe_error: Callable[[Any], tuple[int, bytes]],
    ) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handle(request: Request, error: Any) -> Response:
            status, body = envelope_of(request.scope["path"])(*describe_error(error))
            gateway: Gateway = request.app.state.gateway
            gateway.metrics.record_request(_route(request), status)
            if isinstance(error, UpstreamError):
                gateway.metrics.record_upstream_error(type(error).__name__)
            return Response(body, status, media_type="application/json")

        return handle

    app.add_exception_handler(EntrogateError, handler(describe))
    app.add_exception_handler(HTTPException, handler(_describe_http))
    app.add_exception_handler(RequestValidationError, handler(_describe_validation))
    app.add_exception_handler(Exception, handler(describe))


def _route(request: Request) -> str:
    """The pattern of the route, never the path: labels must stay bounded."""
    return getattr(request.scope.get("route"), "path", "other")


def _describe_http(error: HTTPException) -> tuple[int, bytes]:
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return error.status_code, error_body(str(error.detail), kind=kind)


def _describe_validation(error: RequestValidationError) -> tuple[int, bytes]:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or None
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return 400, error_body(message, kind="invalid_request_error", param=where)

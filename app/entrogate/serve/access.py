"""Who may ask for what: an ASGI middleware in front of every route.

A route without an entry in `SCOPES` keeps the gateway from starting. A client's key ends here: it
is taken out of the request, so it reaches neither vLLM nor a log.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from entrogate.access import Key, Scope
from entrogate.observe.metrics import Metrics
from entrogate.serve.door import envelope_of
from entrogate.serve.keyring import Keyring, Refused
from entrogate.settings import ServeSettings
from entrogate.wire.errors import error_body

OPEN = None
"""Anybody may ask: says nothing of anybody's prompts, tools or answers."""

SCOPES: dict[str, Scope | None] = {
    "/v1/chat/completions": Scope.INFER,
    "/v1/responses": Scope.INFER,
    "/v1/responses/{response_id}": Scope.INFER,
    "/v1/messages": Scope.INFER,
    "/v1/messages/count_tokens": Scope.INFER,
    "/v1/completions": Scope.INFER,
    "/v1/models": Scope.INFER,
    "/v1/feedback": Scope.FEEDBACK,
    "/v1/trajectories": Scope.READ,
    "/v1/trajectories/{trajectory_id}": Scope.READ,
    "/ui": Scope.READ,
    "/ui/trajectories": Scope.READ,
    "/ui/trajectories/{trajectory_id}": Scope.READ,
    "/ui/policy": Scope.READ,
    "/ui/login": OPEN,
    "/ui/static/{name}": OPEN,
    "/admin/weights": Scope.ADMIN,
    "/admin/weights/{version}": Scope.ADMIN,
    "/admin/weights/{version}/share": Scope.ADMIN,
    "/health": OPEN,
    "/ready": OPEN,
    "/metrics": OPEN,  # unless settings.access.protect_metrics
    "/openapi.json": OPEN,
    "/docs": OPEN,
    "/docs/oauth2-redirect": OPEN,
    "/redoc": OPEN,
}
SESSION_COOKIE = "entrogate_session"
_CALLER = "entrogate.caller"
_VIEWER = "/ui"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """``tenant``: whose trajectories a request makes; ``sees``: whose it may know of, None: all."""

    tenant: str = ""
    sees: str | None = None
    is_admin: bool = False


_ANYONE = Caller()


def caller_of(request: Request) -> Caller:
    """On whose behalf a request is made."""
    return request.scope.get(_CALLER, _ANYONE)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Every route has its scope. Raises LookupError: who adds a route says who may use it.

    TypeError for what is no single route (a mounted app, a router included as one object).
    """
    for route in routes:
        if not isinstance(route, Route):
            raise TypeError(f"add routes one by one: who may use {route!r} cannot be checked")
        path = route.path
        if path not in SCOPES:
            raise LookupError(f"serve.access.SCOPES does not say who may use {path!r}")


class AccessControl:
    """Lets a request through, or answers it in the envelope of the API that was asked."""

    def __init__(
        self, app: ASGIApp, *, keyring: Keyring, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._settings = settings
        self._metrics = metrics
        self._running = 0
        scopes = dict(SCOPES)
        if keyring.settings.protect_metrics:
            scopes["/metrics"] = Scope.READ
        self._exact = {path: scope for path, scope in scopes.items() if "{" not in path}
        self._below = [
            (path[: path.index("{")], scope) for path, scope in scopes.items() if "{" in path
        ]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as counted:
            try:
                self._admit(scope, counted)
            except Refused as refused:
                self._metrics.record_refusal(refused.code)
                await self._answer(scope, refused)(scope, receive, send)
                return
            self._running += 1
            counted.callback(self._leave)
            await self._timed(scope, receive, send)

    def required(self, path: str) -> Scope | None:
        """The scope for a path; what is no route needs a key, so that nobody looks around."""
        if path in self._exact:
            return self._exact[path]
        for beginning, scope in self._below:
            if path.startswith(beginning):
                return scope
        return Scope.READ

    def _admit(self, scope: AsgiScope, counted: ExitStack) -> None:
        needed = self.required(scope["path"])
        most = self._settings.max_requests
        if most is not None and self._running >= most and needed is not None:
            raise Refused(
                f"the gateway answers {most} requests at a time",
                status=503,
                code="overloaded",
                retry_after_seconds=1.0,
            )
        if not self._keyring.closed or needed is None:
            return
        key = self._keyring.find(_take_secret(scope))
        if not key.allows(needed):
            raise Refused(
                f"this API key has no scope {needed.value!r}, which {scope['path']} needs",
                status=403,
                code="missing_scope",
            )
        counted.enter_context(self._keyring.counted(key))
        scope[_CALLER] = _caller(key)

    async def _timed(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        seconds = self._settings.request_timeout_seconds
        if seconds is None:
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not limit.expired():
                raise
            self._metrics.record_refusal("request_timeout")
            if begun:  # the server closes a connection whose answer has no end
                return
            said = f"the request took longer than {seconds:g} s"
            late = Refused(said, status=504, code="request_timeout")
            await self._answer(scope, late)(scope, receive, send)

    def _leave(self) -> None:
        self._running -= 1

    def _answer(self, scope: AsgiScope, refused: Refused) -> Response:
        path: str = scope["path"]
        if path.startswith(_VIEWER) and refused.status == 401:
            return RedirectResponse("/ui/login", 303)
        kind = _KINDS.get(refused.status, "gateway_error")
        body = error_body(str(refused), kind=kind, code=refused.code)
        status, body = envelope_of(path)(refused.status, body)
        response = Response(body, status, media_type="application/json")
        if refused.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        if refused.retry_after_seconds is not None:
            response.headers["retry-after"] = str(max(1, math.ceil(refused.retry_after_seconds)))
        return response


def _caller(key: Key) -> Caller:
    is_admin = Scope.ADMIN in key.scopes
    return Caller(tenant=key.tenant, sees=None if is_admin else key.tenant, is_admin=is_admin)


def _take_secret(scope: AsgiScope) -> str | None:
    """The client's key, which is in the request no longer."""
    headers = MutableHeaders(scope=scope)
    bearer, plain = headers.get("authorization", ""), headers.get("x-api-key")
    del headers["authorization"], headers["x-api-key"]
    kind, _, secret = bearer.partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    if plain:
        return plain
    if scope["path"].startswith(_VIEWER):
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
        except CookieError:
            return None
        return None if morsel is None else morsel.value
    return None

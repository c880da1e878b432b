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

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from entrogate.access import Key, Scope
from entrogate.observe.metrics import Metrics
from entrogate.serve.answering import Answering
from entrogate.serve.bodies import Bodies, check_media
from entrogate.serve.door import envelope_of
from entrogate.serve.drain import Drain, last_event
from entrogate.serve.keyring import Keyring, Refused
from entrogate.serve.paths import PathTable
from entrogate.serve.sites import SAFE_METHODS, Sites
from entrogate.settings import ServeSettings
from entrogate.store.admin.audit import ANYBODY
from entrogate.wire.errors import error_body

OPEN = None
"""Anybody may ask: says nothing of anybody's prompts, tools or answers."""

SCOPES: dict[str, Scope | None] = {
    "/v1/chat/completions": Scope.INFER,
    "/v1/responses": Scope.INFER,
    "/v1/responses/{response_id}": Scope.INFER,
    "DELETE /v1/responses/{response_id}": Scope.ERASE,
    "/v1/messages": Scope.INFER,
    "/v1/messages/count_tokens": Scope.INFER,
    "/v1/completions": Scope.INFER,
    "/v1/embeddings": Scope.INFER,
    "/v1/models": Scope.INFER,
    "/v1/models/{model_id:path}": Scope.INFER,
    "/tokenize": Scope.INFER,
    "/detokenize": Scope.INFER,
    "/version": Scope.INFER,
    "/v1/feedback": Scope.FEEDBACK,
    "/v1/trajectories": Scope.READ,
    "/v1/trajectories/{trajectory_id}": Scope.READ,
    "DELETE /v1/trajectories/{trajectory_id}": Scope.ERASE,
    "/v1/tasks/{task_id}": Scope.ERASE,
    "/v1/tenants/{tenant}": Scope.ERASE,
    "/v1/audit": Scope.AUDIT,
    "/ui": Scope.READ,
    "/ui/trajectories": Scope.READ,
    "/ui/trajectories/{trajectory_id}": Scope.READ,
    "POST /ui/trajectories/{trajectory_id}": Scope.ERASE,
    "/ui/audit": Scope.AUDIT,
    "/ui/policy": Scope.READ,
    "/ui/login": OPEN,
    "/ui/logout": OPEN,
    "/ui/static/{name}": OPEN,
    "/admin/fuses": Scope.ADMIN,
    "/admin/fuses/{tool:path}/arm": Scope.ADMIN,
    "/admin/policies": Scope.ADMIN,
    "/admin/policies/main": Scope.ADMIN,
    "/admin/policies/reload": Scope.ADMIN,
    "/admin/policies/trial": Scope.ADMIN,
    "/admin/policies/trial/promote": Scope.ADMIN,
    "/admin/policies/versions": Scope.ADMIN,
    "/admin/policies/versions/{version}": Scope.ADMIN,
    "/admin/weights": Scope.ADMIN,
    "/admin/weights/{version}": Scope.ADMIN,
    "/admin/weights/{version}/share": Scope.ADMIN,
    "/health": OPEN,
    "/ready": OPEN,
    "/metrics": Scope.METRICS,  # unless settings.access.protect_metrics is false
    "/openapi.json": OPEN,
    "/docs": OPEN,
    "/": OPEN,
}
_TELLING = frozenset({"/ready"})  # open, and says more to a key with the scope `read`
SESSION_COOKIE = "entrogate_session"
_CALLER = "entrogate.caller"
_VIEWER = "/ui"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf a request is made.

    ``tenant``: whose trajectories it makes; ``sees``: whose it may know of, None means all;
    ``key_id``: of its API key, None where none is needed.
    """

    tenant: str = ""
    sees: str | None = ""
    is_admin: bool = False
    is_stranger: bool = False  # without a key although there are some
    key_id: str | None = None
    scopes: frozenset[Scope] = frozenset()

    @property
    def actor(self) -> str:
        """What the audit calls it."""
        return self.key_id or ANYBODY

    def may(self, scope: Scope) -> bool:
        """Whether it may do what needs ``scope``."""
        return self.is_admin or scope in self.scopes


_ANYONE = Caller(sees=None, scopes=frozenset(Scope))  # while there are no keys
_STRANGER = Caller(is_stranger=True)


def caller_of(request: Request) -> Caller:
    """On whose behalf a request is made."""
    return request.scope.get(_CALLER, _STRANGER)


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
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        settings: ServeSettings,
        metrics: Metrics,
        drain: Drain,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._settings = settings
        self._metrics = metrics
        self._drain = drain
        self._sites = Sites(settings)
        self._bodies = Bodies(settings)
        self._running = 0
        scopes = dict(SCOPES)
        if not keyring.settings.protect_metrics:
            scopes["/metrics"] = OPEN
        self._scopes = PathTable(scopes)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Check host, origin, key and body, in this order; serve the request if all are right."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        told = self._sites.cors_headers(scope["path"], headers)
        answering = Answering(send, scope["path"], told)
        with ExitStack() as held:
            try:
                self._sites.check_host(headers, closed=self._keyring.closed)
                allowed = self._sites.preflight(scope["method"], scope["path"], headers)
                if allowed is not None:
                    await _empty(send, allowed)
                    return
                known = self._admit(scope, headers, held)
                check_media(scope, headers)
                body = held.enter_context(self._bodies.counted())
                receive = await self._bodies.read(scope, receive, body, known=known)
                self._enter(scope["path"], held)
            except Refused as refused:
                self._metrics.record_refusal(refused.code)
                await self._answer(scope, refused)(scope, receive, answering.send)
                return
            except ClientDisconnect:
                return
            await self._timed(scope, receive, answering)

    def required(self, path: str, method: str = "GET") -> Scope | None:
        """The scope for a path; what is no route needs a key, so that nobody looks around.

        An entry that names the method goes before one that does not.
        """
        return self._scopes.get(f"{method} {path}", self._scopes.get(path, Scope.READ))

    def _admit(self, scope: AsgiScope, headers: Headers, held: ExitStack) -> bool:
        """Whether the caller is known. Raises Refused for one that may not ask for this."""
        method, path = scope["method"], scope["path"]
        needed = self.required(path, method)
        foreign = self._sites.is_foreign(method, headers)
        if needed is None or not self._keyring.closed:
            if foreign and (needed is not None or method not in SAFE_METHODS):
                raise _cross_site()
            if not self._keyring.closed:
                scope[_CALLER] = _ANYONE
            elif path in _TELLING:
                scope[_CALLER] = self._looking(scope)
            self._check_room(path)
            return not self._keyring.closed
        secret = _take_secret(scope)
        if secret is not None or not path.startswith(_VIEWER):
            key = self._keyring.find(secret)
        elif foreign:  # a cookie is sent by every page, a key by those that know it
            raise _cross_site()
        else:
            key = self._keyring.find_session(session_of(headers))
        if not key.allows(needed):
            raise Refused(
                f"this API key has no scope {needed.value!r}, which {path} needs",
                status=403,
                code="missing_scope",
            )
        self._check_room(path)
        held.enter_context(self._keyring.counted(key))
        scope[_CALLER] = _caller(key)
        return True

    def _looking(self, scope: AsgiScope) -> Caller:
        """Who asks for an open route that says more to those with a key."""
        try:
            key = self._keyring.find(_take_secret(scope))
        except Refused:
            return _STRANGER
        return _caller(key) if key.allows(Scope.READ) else _STRANGER

    def _check_room(self, path: str) -> None:
        most = self._settings.max_requests
        if most is not None and self._running >= most and self.required(path) is not OPEN:
            raise Refused(
                f"the gateway already answers {most} requests, its limit",
                status=503,
                code="overloaded",
                retry_after_seconds=1.0,
            )

    def _enter(self, path: str, held: ExitStack) -> None:
        """Count a request that has come whole. Raises Refused where there are too many."""
        if self.required(path) is OPEN:
            return
        self._check_room(path)
        self._running += 1
        held.callback(self._leave)

    async def _timed(self, scope: AsgiScope, receive: Receive, answering: Answering) -> None:
        seconds = self._settings.request_timeout_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                with self._drain.watching(limit):
                    await self._app(scope, receive, answering.send)
            return
        except TimeoutError:
            if not limit.expired():
                raise
        if self._drain.begun:
            late = Refused(
                "the gateway is being stopped; ask again",
                status=503,
                code="gateway_stopping",
                retry_after_seconds=1.0,
            )
        else:
            said = f"the request took longer than {seconds:g} s"
            late = Refused(said, status=504, code="request_timeout")
        self._metrics.record_refusal(late.code)
        end = answering.take_over()
        if end is None:
            return
        if not answering.begun:
            await self._answer(scope, late)(scope, receive, end)
        elif answering.is_stream:  # the server closes the connection of another without an end
            told = last_event(
                scope["path"], late.status, _error_of(late), events_sent=answering.events_sent
            )
            await end({"type": "http.response.body", "body": told, "more_body": False})

    def _leave(self) -> None:
        self._running -= 1

    def _answer(self, scope: AsgiScope, refused: Refused) -> Response:
        path: str = scope["path"]
        if path.startswith(_VIEWER) and refused.status == 401:
            return RedirectResponse("/ui/login", 303)
        status, body = envelope_of(path)(refused.status, _error_of(refused))
        response = Response(body, status, media_type="application/json")
        if refused.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        if refused.retry_after_seconds is not None:
            response.headers["retry-after"] = str(max(1, math.ceil(refused.retry_after_seconds)))
        return response


async def _empty(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _cross_site() -> Refused:
    return Refused(
        "the request comes from another site's page; to allow it, list the site in"
        " ENTROGATE_SERVE__CORS_ORIGINS",
        status=403,
        code="cross_site",
    )


def _error_of(refused: Refused) -> bytes:
    kind = _KINDS.get(refused.status, "gateway_error")
    return error_body(str(refused), kind=kind, code=refused.code)


def _caller(key: Key) -> Caller:
    is_admin = Scope.ADMIN in key.scopes
    return Caller(
        tenant=key.tenant,
        sees=None if is_admin else key.tenant,
        is_admin=is_admin,
        key_id=key.id,
        scopes=key.scopes,
    )


def _take_secret(scope: AsgiScope) -> str | None:
    """The client's key, which is in the request no longer."""
    headers = MutableHeaders(scope=scope)
    bearer, plain = headers.get("authorization", ""), headers.get("x-api-key")
    del headers["authorization"], headers["x-api-key"]
    kind, _, secret = bearer.partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    return plain or None


def session_of(headers: Headers) -> str | None:
    """The session of a browser that has logged in.

    Anybody can send a cookie, and Python's own reader takes time that grows with the square of one
    in quotes (CVE-2024-7592). A session needs no quotes.
    """
    found: str | None = None
    for cookie in headers.get("cookie", "").split(";"):
        name, _, value = cookie.partition("=")
        if name.strip() == SESSION_COOKIE:
            found = value.strip()
    return found

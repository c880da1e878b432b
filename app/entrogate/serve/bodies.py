"""Bodies of requests: of which kind and how long by route, and how much of them all together.

They are read here, before a route is asked, and only for callers who may use it: what is slow or
too large costs nobody a place among the running requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive
from starlette.types import Scope as AsgiScope

from entrogate.serve.keyring import Refused
from entrogate.serve.paths import PathTable
from entrogate.settings import ServeSettings

KIB = 2**10
UNCOUNTED_BYTES = 64 * KIB
"""Of each body, so that large ones do not keep small ones out; connections hold that anyway."""
STRANGERS = 32
"""Bodies of callers without a key that are waited for at a time; the oldest makes room."""
STRANGER_SECONDS = 5.0


class Media(Enum):
    """Content types that a route reads. A page of another site cannot send JSON unasked."""

    VLLM = ("application/json",)  # what vLLM takes, and no other
    JSON = ("application/json", "application/*+json")
    FORM = ("application/x-www-form-urlencoded",)

    def takes(self, content_type: str) -> bool:
        """Is this the value of a `Content-Type` header that the route can read?"""
        essence = content_type.partition(";")[0].strip().lower()
        if essence in self.value:
            return True
        return self is Media.JSON and essence[:12] == "application/" and essence[-5:] == "+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRule:
    """``limit_bytes``: None where the limit of the settings counts alone."""

    media: Media
    limit_bytes: int | None


_TURN = BodyRule(media=Media.VLLM, limit_bytes=None)
_DEFAULT = BodyRule(media=Media.JSON, limit_bytes=64 * KIB)
_POLICY = BodyRule(media=Media.JSON, limit_bytes=1024 * KIB)
_RULES = PathTable(
    {
        "/v1/chat/completions": _TURN,
        "/v1/responses": _TURN,
        "/v1/messages": _TURN,
        "/v1/messages/count_tokens": _TURN,
        "/v1/completions": _TURN,
        "/v1/embeddings": _TURN,
        "/tokenize": _TURN,
        "/detokenize": _TURN,
        "/v1/feedback": BodyRule(media=Media.JSON, limit_bytes=1024 * KIB),
        "/admin/policies/main": _POLICY,
        "/admin/policies/trial": _POLICY,
        "/ui/login": BodyRule(media=Media.FORM, limit_bytes=4 * KIB),
        "/ui/policy": BodyRule(media=Media.FORM, limit_bytes=256 * KIB),
        "/ui/{page}": BodyRule(media=Media.FORM, limit_bytes=16 * KIB),
    }
)


def rule_of(path: str) -> BodyRule:
    """What a route reads; JSON of at most 64 KiB where nothing is said of it."""
    return _RULES.get(path, _DEFAULT)


def has_body(headers: Headers) -> bool:
    """Has the client announced one?"""
    return headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers


def check_media(scope: AsgiScope, headers: Headers) -> None:
    """Raises Refused (400, as vLLM answers) for a content type that the route does not read."""
    rule = rule_of(scope["path"])
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return
    if not has_body(headers) and rule.media is not Media.VLLM:
        return
    sent = headers.get("content-type")
    if sent is not None and rule.media.takes(sent):
        return
    wanted = " or ".join(rule.media.value)
    said = "no content type" if sent is None else f"the content type {sent[:100]!r}"
    raise Refused(
        f"{said}; want `Content-Type: {wanted}`", status=400, code="unsupported_media_type"
    )


@dataclass(slots=True)
class Bodies:
    """Reads bodies within the bounds, and knows how many bytes of them are held."""

    settings: ServeSettings
    held_bytes: int = 0
    _strangers: dict[int, asyncio.Timeout] = field(default_factory=dict[int, asyncio.Timeout])
    _last: int = 0

    @contextmanager
    def counted(self) -> Generator[Held]:
        """Holds what one request's body takes of the budget, until the request has ended."""
        held = Held(self)
        try:
            yield held
        finally:
            self.held_bytes -= held.counted_bytes

    async def read(self, scope: AsgiScope, receive: Receive, held: Held, *, known: bool) -> Receive:
        """The same request with its whole body in one message.

        ``known``: the caller has shown a key, or none is needed. Raises Refused (408, 413, 503)
        and ClientDisconnect.
        """
        headers = Headers(scope=scope)
        if not has_body(headers):
            return receive
        most = rule_of(scope["path"]).limit_bytes
        limit = min(self.settings.body_limit_bytes, most or self.settings.body_limit_bytes)
        length = headers.get("content-length", "")
        if length.isdigit():
            if int(length) > limit:
                raise _too_large(limit)
            held.check_room(int(length))
        seconds = self.settings.body_timeout_seconds
        if not known:
            seconds = min(seconds, STRANGER_SECONDS)
        try:
            async with asyncio.timeout(seconds) as patience:
                if known:
                    body = await _read(receive, limit, held)
                else:
                    with self._as_stranger(patience):
                        body = await _read(receive, limit, held)
        except TimeoutError:
            raise Refused(
                f"the body of the request did not come in {seconds:g} s",
                status=408,
                code="body_timeout",
            ) from None
        return _again(body, receive)

    @contextmanager
    def _as_stranger(self, patience: asyncio.Timeout) -> Generator[None]:
        if len(self._strangers) >= STRANGERS:
            oldest = self._strangers.pop(next(iter(self._strangers)))
            oldest.reschedule(asyncio.get_running_loop().time())
        self._last += 1
        number = self._last
        self._strangers[number] = patience
        try:
            yield
        finally:
            self._strangers.pop(number, None)


@dataclass(slots=True)
class Held:
    """What one body takes of the budget."""

    bodies: Bodies
    counted_bytes: int = 0

    def check_room(self, size: int) -> None:
        """Raises Refused (503) where a body of ``size`` bytes would exceed the budget."""
        bodies = self.bodies
        more = max(0, size - UNCOUNTED_BYTES) - self.counted_bytes
        if more > 0 and bodies.held_bytes + more > bodies.settings.body_budget_bytes:
            raise Refused(
                "the bodies of the running requests would exceed the budget of"
                f" {bodies.settings.body_budget_bytes} bytes",
                status=503,
                code="overloaded",
                retry_after_seconds=1.0,
            )

    def grow(self, size: int) -> None:
        """Count a body that has ``size`` bytes by now. Raises Refused (503)."""
        self.check_room(size)
        more = max(0, size - UNCOUNTED_BYTES) - self.counted_bytes
        if more > 0:
            self.bodies.held_bytes += more
            self.counted_bytes += more


async def _read(receive: Receive, limit: int, held: Held) -> bytes:
    whole = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        if len(whole) + len(part) > limit:
            raise _too_large(limit)
        held.grow(len(whole) + len(part))
        more = message.get("more_body", False)
        if not more and not whole:
            return part
        whole += part
        if not more:
            return bytes(whole)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what comes after it."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return rest.pop() if rest else await receive()

    return receive_again


def _too_large(limit: int) -> Refused:
    return Refused(
        f"the body is larger than the limit of {limit} bytes", status=413, code="body_too_large"
    )

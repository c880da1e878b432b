"""The API keys as a running gateway knows them: read every few seconds, counted against limits."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from pydantic import SecretStr

from entrogate.access import Key, Scope, digest_of
from entrogate.background import beside
from entrogate.errors import EntrogateError
from entrogate.serve.sessions import Sessions
from entrogate.settings import AccessSettings
from entrogate.store import Store

_USE_GRAIN_SECONDS = 60.0
_STATIC = "static"  # the key of the settings
_METRICS = "metrics"  # the token of the settings that opens /metrics
_log = logging.getLogger("entrogate.serve")


class Refused(EntrogateError):
    """A request that is refused before it reaches a route: by its key, its size or its kind."""

    def __init__(
        self, message: str, *, status: int, code: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True)
class _Use:
    """What a key has left; ``tokens`` come back at the key's rate."""

    tokens: float
    filled_at: float
    running: int = 0


@dataclass
class Keyring:
    """Finds the key of a secret. Without any key, access is open.

    Once a key was made, access stays closed to those without one, also when all are revoked.
    """

    settings: AccessSettings
    store: Store
    _sessions: Sessions = field(init=False)
    _keys: dict[bytes, Key] = field(default_factory=dict[bytes, Key])
    _by_id: dict[str, Key] = field(default_factory=dict[str, Key])
    _uses: dict[str, _Use] = field(default_factory=dict[str, _Use])
    _used_at: dict[str, float] = field(default_factory=dict[str, float])  # by id, not yet stored
    _closed: bool = False

    def __post_init__(self) -> None:
        secret = self.settings.session_secret or self.settings.key  # what replicas share
        signing = secrets.token_bytes(32)
        if secret is not None:
            signing = hashlib.sha256(b"sessions " + secret.get_secret_value().encode()).digest()
        self._sessions = Sessions(secret=signing, seconds=self.settings.session_seconds)

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return self._closed

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Know the keys now, and soon each change of them."""
        await self.refresh()
        async with beside(self._watch(), name="keyring"):
            yield

    async def refresh(self) -> None:
        """Read the keys. Raises StoreError."""
        keys = {key.digest: key for key in await self.store.keys()}
        if self.settings.key is not None:
            static = _fixed(_STATIC, self.settings.key, frozenset(Scope))
            keys[static.digest] = static
        self._closed = self._closed or bool(keys)
        if self.settings.metrics_token is not None:  # no reason to ask others for a key
            token = _fixed(_METRICS, self.settings.metrics_token, frozenset({Scope.METRICS}))
            keys.setdefault(token.digest, token)
        self._keys = keys
        self._by_id = {key.id: key for key in keys.values()}

    async def _note_uses(self) -> None:
        """Store when keys were last used, where that is news by more than a minute."""
        keys = self._keys.values()
        stored = {
            key.id: key.last_used_at or 0.0 for key in keys if key.id not in (_STATIC, _METRICS)
        }
        news = {
            id_: at
            for id_, at in self._used_at.items()
            if at > stored.get(id_, at) + _USE_GRAIN_SECONDS
        }
        noted = dict(self._used_at)
        if news:
            await self.store.note_key_uses(news)  # where it fails, the next round tries again
        for id_, at in noted.items():
            if self._used_at.get(id_) == at:
                del self._used_at[id_]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                await self.refresh()
                await self._note_uses()
            except Exception as error:  # noqa: BLE001  (a supervisor: what is known stays known)
                _log.warning("keys.not_read %s", error)

    def find(self, secret: str | None) -> Key:
        """The valid key of this secret. Raises Refused (401)."""
        if secret is None:
            raise Refused(
                "no API key: send one as `Authorization: Bearer …` or `x-api-key`",
                status=401,
                code="missing_api_key",
            )
        key = self._keys.get(digest_of(secret))
        now = time.time()
        if key is None or not key.is_valid(now):
            raise Refused(
                "this API key is unknown, revoked or expired", status=401, code="invalid_api_key"
            )
        self._used_at[key.id] = now
        return key

    def open_session(self, secret: str) -> tuple[str, int]:
        """A browser's session, in place of its key: the token, and the seconds that it is good for.

        Raises Refused (401), or Refused (403) for a key that opens no page.
        """
        key = self.find(secret)
        if not key.allows(Scope.READ):
            raise Refused(
                f"this API key has no scope {Scope.READ.value!r}, which the pages need",
                status=403,
                code="missing_scope",
            )
        return self._sessions.open(key)

    def find_session(self, token: str | None) -> Key:
        """The valid key of a session. Raises Refused (401)."""
        key = None if token is None else self._sessions.find(token, self._by_id)
        if key is None or not key.is_valid(time.time()):
            raise Refused("nobody is logged in", status=401, code="no_session")
        self._used_at[key.id] = time.time()
        return key

    def close_session(self, token: str) -> None:
        """Log a browser out."""
        self._sessions.close(token, self._by_id)

    @contextmanager
    def counted(self, key: Key) -> Generator[None]:
        """The time of one request of the key. Raises Refused (429) beyond its limits."""
        if key.requests_per_minute is None and key.concurrency is None:
            yield
            return
        use = self._use(key)
        if key.concurrency is not None and use.running >= key.concurrency:
            raise Refused(
                f"this API key may have {key.concurrency} requests at a time",
                status=429,
                code="concurrency_limit_exceeded",
                retry_after_seconds=1.0,
            )
        if key.requests_per_minute is not None:
            if use.tokens < 1.0:
                raise Refused(
                    f"this API key may make {key.requests_per_minute} requests per minute",
                    status=429,
                    code="rate_limit_exceeded",
                    retry_after_seconds=(1.0 - use.tokens) * 60.0 / key.requests_per_minute,
                )
            use.tokens -= 1.0
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def _use(self, key: Key) -> _Use:
        now = time.monotonic()
        most = float(key.requests_per_minute or 0)
        use = self._uses.setdefault(key.id, _Use(tokens=most, filled_at=now))
        use.tokens = min(most, use.tokens + (now - use.filled_at) * most / 60.0)
        use.filled_at = now
        return use


def _fixed(name: str, secret: SecretStr, scopes: frozenset[Scope]) -> Key:
    """A key of the settings, which the store does not know."""
    digest = digest_of(secret.get_secret_value())
    return Key(id=name, name=name, digest=digest, shown="", tenant="", scopes=scopes)

"""A browser's log-in: a signed name of its key with an end, in place of the key itself.

Nothing is stored. The signature covers the key's digest, so a session ends with its key; who logs
out ends it in this process, and in the browser.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from entrogate.access import Key

_PARTS = 4


@dataclass(slots=True, kw_only=True)
class Sessions:
    """Opens, finds and closes sessions; ``secret`` signs them."""

    secret: bytes
    seconds: float
    _closed: dict[str, float] = field(default_factory=dict[str, float])  # until their end

    def open(self, key: Key) -> tuple[str, int]:
        """The session's token and for how many seconds it is good."""
        now = time.time()
        ends = now + self.seconds
        if key.expires_at is not None:
            ends = min(ends, key.expires_at)
        said = f"{key.id}.{int(ends)}.{secrets.token_hex(16)}"
        return f"{said}.{self._signature(said, key)}", max(0, int(ends - now))

    def find(self, token: str, keys: Mapping[str, Key]) -> Key | None:
        """The key of a session that is good; ``keys`` by id."""
        parts = token.split(".")
        if len(parts) != _PARTS:
            return None
        id_, ends, nonce, signature = parts
        key = keys.get(id_)
        if key is None or nonce in self._closed:
            return None
        said = f"{id_}.{ends}.{nonce}"
        if not hmac.compare_digest(signature.encode(), self._signature(said, key).encode()):
            return None
        return key if time.time() < int(ends) else None

    def close(self, token: str, keys: Mapping[str, Key]) -> None:
        """From now on the session is good for nothing."""
        if self.find(token, keys) is None:
            return
        now = time.time()
        self._closed = {nonce: ends for nonce, ends in self._closed.items() if now < ends}
        _, ends, nonce, _ = token.split(".")
        self._closed[nonce] = float(ends)

    def _signature(self, said: str, key: Key) -> str:
        return hmac.new(self.secret, key.digest + said.encode(), hashlib.sha256).hexdigest()

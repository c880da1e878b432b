"""Who may do what: API keys with scopes, and tenants whose trajectories do not meet.

A key is 256 random bits, so its SHA-256 is enough to keep: there is nothing to guess that a slow
hash would protect (docs/decisions/0009-access.md). A tenant is written into the ids of its
trajectories, so that no id that a client can name leads to another tenant's.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

SECRET_PREFIX = "eg_"
SHOWN_CHARACTERS = 9  # of a secret, in lists
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SEPARATOR = "~"  # in no id that a client names, and free in URLs


class Scope(StrEnum):
    """What a key is for."""

    INFER = "infer"  # ask the model
    FEEDBACK = "feedback"  # report outcomes
    READ = "read"  # look at what was recorded
    METRICS = "metrics"  # scrape /metrics, which names the tools of all tenants
    ERASE = "erase"  # erase what was recorded
    AUDIT = "audit"  # see who did what
    ADMIN = "admin"  # everything, of all tenants; published weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One API key; ``digest`` stands for its secret, which nobody keeps."""

    id: str
    name: str
    digest: bytes
    shown: str  # the beginning of the secret
    tenant: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    concurrency: int | None = None
    created_at: float = 0.0  # seconds since the epoch, like the others
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None  # to the minute

    def allows(self, scope: Scope) -> bool:
        """Whether the key has ``scope``; the scope `admin` includes every other."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def is_valid(self, now: float) -> bool:
        """Whether the key is neither revoked nor expired at ``now``, in seconds since the epoch."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_secret() -> str:
    """256 random bits as text."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> bytes:
    """SHA-256 of a key's secret, 32 bytes. Secrets are random, so a salt would add nothing."""
    return hashlib.sha256(secret.encode()).digest()


def check_tenant(name: str) -> str:
    """``name`` if it can be a tenant's; the empty one is the default. Raises ValueError."""
    if name and not _TENANT.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a tenant; want 1 to 64 of A-Z a-z 0-9 _ . -,"
            " beginning with a letter or a digit"
        )
    return name


def qualified(tenant: str, name: str) -> str:
    """The trajectory id that ``name`` stands for when ``tenant`` says it."""
    if not tenant or name.startswith(tenant + _SEPARATOR):
        return name
    return f"{tenant}{_SEPARATOR}{name}"


def unqualified(tenant: str, id_: str) -> str:
    """What a client of ``tenant`` chose of an id."""
    return id_.removeprefix(tenant + _SEPARATOR) if tenant else id_


def tenant_of(trajectory_id: str) -> str:
    """Whose trajectory it is."""
    tenant, separator, _ = trajectory_id.partition(_SEPARATOR)
    return tenant if separator else ""


def belongs(trajectory_id: str, tenant: str | None) -> bool:
    """Whether ``tenant`` may know of it; None stands for those who may know of all."""
    return tenant is None or tenant_of(trajectory_id) == tenant


def digest_of_trajectory(trajectory_id: str) -> str:
    """What a tombstone says of a trajectory: 128 bits of blake2b of its id, in hexadecimal."""
    return hashlib.blake2b(trajectory_id.encode(), digest_size=16).hexdigest()

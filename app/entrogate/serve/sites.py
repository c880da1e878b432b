"""Which names this server answers to, and which other sites' pages may ask it.

A browser runs the pages of every site. Without API keys, two things keep them from a gateway on
the reader's own machine: a page whose name was pointed at this machine (DNS rebinding) says that
name in `Host`, and a page of another site says its own in `Origin`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from entrogate.serve.keyring import Refused
from entrogate.settings import ServeSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".svc", ".home.arpa")
"""No name in the public DNS ends like this, and none is a single word."""
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_EXPOSED = "x-request-id, x-entrogate-trajectory-id, x-entrogate-decision, retry-after"


class Sites:
    """Hosts and origins by the settings; ``closed`` says whether the gateway has API keys."""

    def __init__(self, settings: ServeSettings) -> None:
        self._listed = settings.allowed_hosts
        self._origins = frozenset(origin.lower() for origin in settings.cors_origins)
        own = _without_port(settings.host)
        self._own = own
        self._local = is_loopback(own)
        self._is_ours = lru_cache(maxsize=256)(self._is_allowed)

    def check_host(self, headers: Headers, *, closed: bool) -> None:
        """Raises Refused (403) for a name that is not this server's.

        With API keys every name will do unless the settings list some: a page that reaches the
        gateway under a name of its own has no key.
        """
        if self._listed is None and closed:
            return
        for said in headers.getlist("host"):
            if not self._is_ours(said):
                raise Refused(
                    f"this gateway does not answer to the host name {_shown(said)!r}; to allow it,"
                    " start the gateway with --allowed-host NAME"
                    " (ENTROGATE_SERVE__ALLOWED_HOSTS)",
                    status=403,
                    code="host_not_allowed",
                )

    def is_foreign(self, method: str, headers: Headers) -> bool:
        """Does a page of another site ask, one that the settings do not name?

        A link from elsewhere that a reader follows does not count: that page reads nothing of it.
        """
        site = headers.get("sec-fetch-site")
        if site in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        if origin is not None:
            return origin.lower() not in self._origins and not _is_same(
                origin, headers.get("host", "")
            )
        if site is None:
            return False
        return method not in SAFE_METHODS or headers.get("sec-fetch-mode") != "navigate"

    def cors_headers(self, path: str, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What lets a page of a listed origin read the answer; for the APIs alone."""
        origin = headers.get("origin")
        if origin is None or not self._origins or not path.startswith("/v1/"):
            return []
        if origin.lower() not in self._origins and "*" not in self._origins:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED.encode()),
            (b"vary", b"origin"),
        ]

    def preflight(
        self, method: str, path: str, headers: Headers
    ) -> list[tuple[bytes, bytes]] | None:
        """The headers that answer a browser's question before the request; None: it is none."""
        asked = headers.get("access-control-request-method")
        if method != "OPTIONS" or asked is None:
            return None
        allowed = self.cors_headers(path, headers)
        if len(allowed) < 2:
            return None
        wished = headers.get("access-control-request-headers", "")
        allowed += [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", wished.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]
        if headers.get("access-control-request-private-network") == "true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed

    def _is_allowed(self, said: str) -> bool:
        host = _without_port(said)
        if is_loopback(host) or host == self._own:
            return True
        if self._listed is not None and _matches(host, self._listed):
            return True
        if self._local or not host:
            return False
        if _address(host) is not None:
            return True
        return self._listed is None and ("." not in host or host.endswith(_LOCAL_ENDINGS))


def is_loopback(host: str) -> bool:
    """Does ``host`` name this machine and no other can reach it?"""
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _matches(host: str, names: Iterable[str]) -> bool:
    for name in map(str.lower, names):
        if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _without_port(said: str) -> str:
    """The name in a `Host` header, in lower case; an IPv6 address without its brackets."""
    said = said.strip().lower()
    if said.startswith("["):
        return said[1:].partition("]")[0]
    if said.count(":") == 1:
        said = said.partition(":")[0]
    return said.removesuffix(".")


def _is_same(origin: str, host: str) -> bool:
    """Is ``host`` the one of ``origin``? A proxy may have ended TLS, so schemes may differ."""
    parts = urlsplit(origin.lower())
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None or not parts.netloc:
        return False
    return parts.netloc.removesuffix(f":{port}") == host.lower().removesuffix(f":{port}")


def _shown(said: str) -> str:
    return said[:100].encode("ascii", "replace").decode()

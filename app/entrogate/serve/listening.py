"""The sockets that the server listens on."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from entrogate.errors import ConfigError


@contextmanager
def listening(host: str, port: int) -> Generator[list[socket.socket]]:
    """Sockets bound to every address of ``host``, for uvicorn to listen on; closed at the end.

    Bound by us, and before a model server is started, so that a port in use is told at once.
    Raises ConfigError.
    """
    with ExitStack() as held:
        try:
            flags = socket.AI_PASSIVE
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
            addresses = dict.fromkeys((each[0], each[4]) for each in found)
            bound = [held.enter_context(_bound(*each)) for each in addresses]
        except OSError as error:
            number = error.errno or 0  # negative: of the resolver
            why = os.strerror(number) if number > 0 else error.strerror
            raise ConfigError(
                f"cannot listen on {host}:{port}: {why}; --host and --port choose another address"
            ) from None
        yield bound


def _bound(family: int, address: Any, /) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made

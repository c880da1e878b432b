# pyright: reportUnknownMemberType=false
"""Who may listen and speak where the engine sends: both ends check it, by the same rules.

An ``ipc://`` socket in a folder that only this user can enter needs nothing more. Everything else
(TCP, a shared folder) needs a secret that both ends know: ZeroMQ's CURVE encrypts what is sent, and
each end's key pair comes from the secret (decision 0015).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zmq
import zmq.utils.z85

from entrogate.engine.environment import ADDRESS_VARIABLE, SECRET_VARIABLE

LEAST_SECRET = 16  # characters
_IPC = "ipc://"
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}


class ChannelRefused(ValueError):
    """An address that others could reach; the message says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Of both ends, in ZeroMQ's Z85 form: whoever knows the secret can make them."""

    engine_public: bytes
    engine_secret: bytes
    gateway_public: bytes
    gateway_secret: bytes


def default_address() -> str:
    """Where the engine sends unless it is told otherwise: one folder for each user."""
    return f"{_IPC}{tempfile.gettempdir()}/entrogate-{os.getuid()}/captures"


def derive_keys(secret: str) -> Keys:
    """The same for the same secret, on every machine. ChannelRefused when it is too short."""
    _check_secret(secret)
    engine_public, engine_secret = _pair(secret, b"entrogate engine 1")
    gateway_public, gateway_secret = _pair(secret, b"entrogate gateway 1")
    return Keys(
        engine_public=engine_public,
        engine_secret=engine_secret,
        gateway_public=gateway_public,
        gateway_secret=gateway_secret,
    )


def check_address(address: str, secret: str | None) -> None:
    """Raises ChannelRefused where somebody else could listen or speak at ``address``.

    A folder that is not there yet is made.
    """
    folder = ipc_folder(address)
    if folder is None and not address.startswith("tcp://"):
        raise ChannelRefused(f"the capture address {address!r} is neither ipc:///… nor tcp://…")
    if secret is not None:
        _check_secret(secret)
    elif folder is not None:
        make_private(folder)
    else:
        raise ChannelRefused(
            f"captures on {address} need a secret, because everybody on the network could"
            f" listen and speak there: set {SECRET_VARIABLE} in vLLM's environment and"
            " ENTROGATE_UPSTREAM__CAPTURE_SECRET in the gateway's to the same value, or use"
            " ipc:///folder/captures"
        )


def protect(socket: Any, secret: str | None, *, binds: bool) -> None:
    """Give ``socket`` the keys of its end: the engine's, which binds, or the gateway's."""
    if secret is None:
        return
    keys = derive_keys(secret)
    if binds:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = keys.engine_public, keys.engine_secret
    else:
        socket.curve_serverkey = keys.engine_public
        socket.curve_publickey, socket.curve_secretkey = keys.gateway_public, keys.gateway_secret


def ipc_folder(address: str) -> Path | None:
    """The folder of an ``ipc://`` address, None of any other."""
    return Path(address[len(_IPC) :]).parent if address.startswith(f"{_IPC}/") else None


def make_private(folder: Path) -> None:
    """Make ``folder``, or check that it is: ours, a folder, and nobody else may enter it.

    Raises ChannelRefused otherwise.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ChannelRefused(f"cannot make {folder} for the capture socket: {error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ChannelRefused(
            f"{folder} is not a folder of this user: name another one for captures"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ChannelRefused(
            f"others may enter {folder} (mode {stat.S_IMODE(found.st_mode):04o}): make it 0700,"
            " or set a secret for the capture channel"
        )


def take_socket_file(address: str) -> IO[bytes] | None:
    """Hold the place of an ``ipc://`` socket as long as the returned file is open.

    ZeroMQ would take it from another engine that is bound there without a word. Raises
    ChannelRefused when it is held; None for other addresses.
    """
    if ipc_folder(address) is None:
        return None
    path = Path(f"{address[len(_IPC) :]}.lock")
    try:
        lock = path.open("ab")
    except OSError as error:
        raise ChannelRefused(f"cannot write {path}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ChannelRefused(
            f"another vLLM sends its captures on {address}: set {ADDRESS_VARIABLE} to an address"
            " of its own"
        ) from None
    return lock


def _check_secret(secret: str) -> None:
    if len(secret) < LEAST_SECRET:
        raise ChannelRefused(
            f"the secret of the capture channel has {len(secret)} characters;"
            f" want at least {LEAST_SECRET}, such as those of `openssl rand -hex 32`"
        )


def _pair(secret: str, role: bytes) -> tuple[bytes, bytes]:
    """Public and secret key. Scrypt makes a secret that somebody chose expensive to guess."""
    key = hashlib.scrypt(secret.encode(), salt=role, **_SCRYPT)
    encoded: bytes = zmq.utils.z85.encode(key)
    return zmq.curve_public(encoded), encoded

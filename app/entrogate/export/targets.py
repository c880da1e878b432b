# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""New files and folders that appear whole, or not at all."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from entrogate.errors import ExportError
from entrogate.private import make_file, make_folder


@contextmanager
def appears_whole(url: str) -> Generator[str]:
    """The URL to write to: what is there gets the name ``url`` when the block ends.

    A block that raises leaves nothing behind. On a local disk the renaming is one step; on object
    storage a folder is renamed file by file. Raises ExportError, in one line, when ``url`` exists
    already or cannot be written.
    """
    plain = url.rstrip("/")
    temporary_url = f"{plain}.{secrets.token_hex(4)}.tmp"
    try:
        fs, target = url_to_fs(plain)
        _, temporary = url_to_fs(temporary_url)
    except (ImportError, ValueError) as error:
        raise ExportError(f"cannot use {url}: {error}") from None
    try:
        if fs.exists(target):
            raise ExportError(f"{url} exists already: name a new one")
        make_folders(fs, posixpath.dirname(target))
        try:
            yield temporary_url
            fs.mv(temporary, target, recursive=True)
        except BaseException:
            if fs.exists(temporary):
                fs.rm(temporary, recursive=True)
            raise
    except OSError as error:
        raise ExportError(f"cannot write to {url}: {error}") from None


def make_folders(fs: Any, path: str) -> None:
    """Create a folder and those above it; on a local disk for their owner alone (0700)."""
    if isinstance(fs, LocalFileSystem):
        make_folder(Path(path))
    else:
        fs.makedirs(path, exist_ok=True)


def open_new(fs: Any, path: str) -> Any:
    """A file to write to; on a local disk its owner alone can read it (0600)."""
    if isinstance(fs, LocalFileSystem):
        make_file(Path(path))
    return fs.open(path, "wb")


def sync(out: Any) -> None:
    """On a local disk, have it there before anything says it is."""
    try:
        descriptor = out.fileno()
    except (AttributeError, OSError):
        return
    out.flush()
    os.fsync(descriptor)

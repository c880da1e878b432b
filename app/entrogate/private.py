"""Files and folders that nobody but their owner can read, whatever the umask is."""

from __future__ import annotations

import os
from pathlib import Path

_OTHERS = 0o077


def make_file(path: Path) -> bool:
    """Create an empty file with mode 0600 unless there is one; whether it was created."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have taken more away
    finally:
        os.close(descriptor)
    return True


def make_folder(path: Path) -> None:
    """Create the folder and those above it that are missing, each with mode 0700."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(0o700)


def is_open_to_others(path: Path) -> bool:
    """Can its group or everybody read, write or enter it? False where it is not there."""
    try:
        return bool(path.stat().st_mode & _OTHERS)
    except OSError:
        return False


def warning_of(path: Path) -> str:
    """What to say of a file or folder that is open to others."""
    mode, right = path.stat().st_mode & 0o777, "700" if path.is_dir() else "600"
    return f"{path} can be read by others (mode {mode:04o}); `chmod {right}` closes it"

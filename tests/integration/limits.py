"""Limits of the kernel on this process, for a while."""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def limited_files(size: int) -> Generator[None]:
    """Writing a file beyond ``size`` bytes fails with an OSError, as it does on a full disk.

    Python ignores SIGXFSZ, which would end the process otherwise.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

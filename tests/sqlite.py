"""SQLite stores for the tests: the tables are made once in a process, a test has a copy.

All migrations take a hundred milliseconds, which over a thousand tests is more than what most of
them do. That a start makes the tables itself is shown where that is what is tested (commands,
migrations, real processes).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from entrogate.private import make_file
from entrogate.settings import StoreSettings
from entrogate.store.database import Database


def new_store(path: Path) -> str:
    """The URL of the SQLite file ``path``: what is there, or a new one with our tables."""
    if make_file(path):
        path.write_bytes(_with_tables())
    return _url(path)


@cache
def _with_tables() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        Database(StoreSettings(url=_url(path))).close()
        return path.read_bytes()


def _url(path: Path) -> str:
    return f"sqlite:///{path}"

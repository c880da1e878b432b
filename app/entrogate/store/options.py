"""What the commands that use a store have in common: its option, and a store to read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import click

from entrogate.settings import StoreSettings
from entrogate.store.store import Store

store_option: Callable[..., Any] = click.option(
    "--store",
    "url",
    envvar="ENTROGATE_STORE__URL",
    default=StoreSettings().url,
    show_default=True,
    help="URL of the store.",
)


@contextmanager
def opened(url: str) -> Generator[Store]:
    """The store of this URL for reading."""
    store = Store.open(StoreSettings(url=url), read_only=True)
    try:
        yield store
    finally:
        asyncio.run(store.aclose())

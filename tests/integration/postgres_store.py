"""A store on Postgres, opened as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store
from tests.postgres import connect


def settings(url: str, **changed: object) -> StoreSettings:
    return StoreSettings.model_validate({"url": url} | changed)


@asynccontextmanager
async def opened(url: str, **changed: object) -> AsyncIterator[Store]:
    store = await asyncio.to_thread(Store.open, settings(url, **changed))
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with opened(postgres_url) as store:
        yield store


def scalar(url: str, query: str) -> Any:
    with connect(url) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]

"""A gateway that asks for keys, and the keys that a test makes for it."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner

from entrogate.access import digest_of
from entrogate.settings import StoreSettings
from entrogate.store.admin.keys_cli import keys as keys_command
from entrogate.store.database import Database
from entrogate.store.schema import api_keys
from tests.integration.conftest import Start
from tests.integration.harness import Running

KEYS = {"refresh_seconds": 0.02}


def run(*arguments: str, url: str) -> str:
    done = CliRunner().invoke(keys_command, [*arguments, "--store", url], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


class Keys:
    """Makes keys as an operator does, and waits until the gateway knows them."""

    def __init__(self, gateway: Running, url: str) -> None:
        self.gateway = gateway
        self.url = url

    async def make(self, *scopes: str, tenant: str = "", **options: Any) -> str:
        arguments = [f"--{name}={value}" for name, value in options.items()]
        arguments += [f"--scope={scope}" for scope in scopes]
        output = await asyncio.to_thread(
            run, "create", "--name=test", f"--tenant={tenant}", *arguments, url=self.url
        )
        secret = output.splitlines()[-1]
        await self.until(secret, known=True)
        return secret

    async def revoke(self, secret: str) -> None:
        await asyncio.to_thread(run, "revoke", secret[:9], url=self.url)
        await self.until(secret, known=False)

    async def expire(self, secret: str) -> None:
        def change() -> None:
            with closing(Database(StoreSettings(url=self.url))) as database:
                its = api_keys.c.digest == digest_of(secret)
                with database.writer.begin() as connection:
                    connection.execute(api_keys.update().where(its).values(expires_at=1.0))

        await asyncio.to_thread(change)
        await self.until(secret, known=False)

    async def until(self, secret: str, *, known: bool) -> None:
        async with asyncio.timeout(60):
            while True:
                with_it = await self.gateway.client.get("/nothing", headers=bearer(secret))
                without = await self.gateway.client.get("/nothing")
                if without.status_code == 401 and (with_it.status_code != 401) == known:
                    return
                await asyncio.sleep(0.01)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
async def gateway(start: Start) -> Running:
    return await start(access=KEYS)


@pytest.fixture
async def keys(gateway: Running, store_url: str) -> Keys:
    return Keys(gateway, store_url)

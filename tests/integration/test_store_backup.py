"""A copy that is made while a gateway writes is whole, and serves; `entrogate store` around it."""

import asyncio
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

from entrogate.errors import StoreError
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.admin.cli import store as store_command
from entrogate.store.schema import REVISION
from tests.integration.stored import trajectory_json
from tests.postgres import Server, connect
from tests.unit.store.made import turn


async def run(*arguments: str) -> Result:
    """In a thread of its own, beside the loop that writes."""
    return await asyncio.to_thread(
        CliRunner().invoke, store_command, arguments, catch_exceptions=False
    )


async def program(server: Server, name: str, *arguments: str) -> None:
    """One of Postgres' own."""
    assert server.cluster is not None
    environment = {"PGPASSWORD": str(server.url.password)}
    command = [str(server.cluster.programs / name), *arguments]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60)


@pytest.mark.both_stores
async def test_a_copy_made_under_load_is_whole(
    request: pytest.FixtureRequest, store_url: str, tmp_path: Path
) -> None:
    store = Store.open(StoreSettings(url=store_url))
    await store.start()
    written = 0
    running = True

    async def agent(name: str) -> None:
        nonlocal written
        last, head = None, None
        while running:
            last = turn(name, parent=last, head=head)
            (head,) = await store.commit_turns([last])
            written += 1

    agents = [asyncio.create_task(agent(f"agent{number}")) for number in range(4)]
    while written < 50:
        await asyncio.sleep(0.01)
    before = written
    if store_url.startswith("sqlite"):
        copy_url = f"sqlite:///{tmp_path}/copy.db"
        done = await run("backup", str(tmp_path / "copy.db"), "--store", store_url)
        assert done.exit_code == 0, done.output
        refused = await run("backup", str(tmp_path / "copy.db"), "--store", store_url)
        assert "exists" in refused.output
    else:
        server: Server = request.getfixturevalue("postgres_server")
        copy_url = request.getfixturevalue("empty_postgres")
        dump = str(tmp_path / "entrogate.dump")
        await program(server, "pg_dump", "--format=custom", "--file", dump, "--dbname", store_url)
        await program(server, "pg_restore", "--no-owner", "--dbname", copy_url, dump)
        refused = await run("backup", dump, "--store", store_url)
        assert "for Postgres use pg_dump" in refused.output
    running = False
    await asyncio.gather(*agents)
    await store.aclose()

    copy = Store.open(StoreSettings(url=copy_url))  # current, so it serves
    await copy.start()
    await copy.commit_turns([turn("after")])
    found = [await trajectory_json(copy, f"agent{n}", tokens=True) for n in range(4)]
    await copy.aclose()
    assert before <= sum(each["n_turns"] for each in found) <= written
    for each in found:
        lengths = [len(read["tokens"]["prompt_token_ids"]) for read in each["turns"]]
        assert lengths == [read["n_prompt_tokens"] for read in each["turns"]]
        assert len(lengths) == each["n_turns"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_up_and_down(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    if kind == "postgres":
        url = request.getfixturevalue("empty_postgres")
    at = ["--store", url]
    assert (await run("upgrade", *at)).output == f"revision none -> {REVISION}\n"
    assert (await run("downgrade", "0002", *at)).exit_code == 1  # nobody said yes
    assert (await run("downgrade", "0002", "--yes", *at)).output == f"revision {REVISION} -> 0002\n"
    status = (await run("status", *at)).output
    assert status.endswith(f": revision 0002, this version {REVISION}\n")
    if kind == "postgres":
        assert str(make_url(url).password) not in status
    with pytest.raises(StoreError, match="`entrogate store upgrade` or a start"):
        Store.open(StoreSettings(url=url), read_only=True)
    assert (await run("upgrade", *at)).output == f"revision 0002 -> {REVISION}\n"
    store = Store.open(StoreSettings(url=url))
    await store.start()
    await store.commit_turns([turn("t")])
    await store.aclose()


async def test_a_newer_database_is_taken_neither_up_nor_down(empty_postgres: str) -> None:
    await run("upgrade", "--store", empty_postgres)
    with connect(empty_postgres) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for command in (["upgrade"], ["downgrade", "0001", "--yes"]):
        with pytest.raises(StoreError, match="use the newer Entrogate that wrote it"):
            await run(*command, "--store", empty_postgres)

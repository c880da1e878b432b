"""Policy files that change under a running gateway; what cannot be used replaces nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from entrogate.errors import ConfigError
from entrogate.settings import StoreSettings
from entrogate.store.database import Database
from tests.integration.conftest import Start
from tests.integration.harness import (
    ask,
    error_of,
    events,
    eventually,
)
from tests.integration.policies import (
    ADMIN,
    DROPS,
    KEEPS,
    SOON,
    arms,
    deciders,
    put,
    text_of,
    written,
)

pytestmark = pytest.mark.both_stores


async def test_reload_takes_what_the_files_say(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "main.yaml"
    gateway = await start(policy=written(path, "one", **KEEPS))
    written(path, "two", **KEEPS)
    assert (await arms(gateway))["main"][0] == "one"
    answer = await gateway.client.post(f"{ADMIN}/reload")
    assert [each["name"] for each in answer.json()["data"]] == ["two"]
    await put(gateway, "main", policy=text_of("three", **KEEPS))
    assert (await gateway.client.post(f"{ADMIN}/reload")).status_code == 200
    assert await arms(gateway) == {"main": ("two", 1.0, "settings")}

    path.write_text("schema_version: 1\nname: three\nthresold: 2\n")
    for _ in range(2):
        refused = await gateway.client.post(f"{ADMIN}/reload")
        assert "main.yaml:3:1: unknown key 'thresold'" in error_of(refused, 409)["message"]
    assert (await arms(gateway))["main"][0] == "two"
    ready = await gateway.client.get("/ready")
    assert ready.status_code == 200
    assert "main.yaml:3:1: " in ready.json()["policy_problem"]
    assert await gateway.metric("entrogate_policy_reload_failed") == 1
    assert await gateway.metric("entrogate_policy_reloads_total", result="failed") == 1
    assert sum("policy.not_reloaded" in each for each in caplog.messages) == 1

    written(path, "two", **KEEPS)
    assert (await gateway.client.post(f"{ADMIN}/reload")).json()["problem"] is None
    assert await gateway.metric("entrogate_policy_reload_failed") == 0
    assert "policy_problem" not in (await gateway.client.get("/ready")).json()


async def test_a_mounted_file_is_watched(start: Start, folder: Path) -> None:
    """As Kubernetes mounts a ConfigMap: the file is a link through a link that is replaced."""

    def mount(number: int, content: str) -> None:
        (folder / f"..{number}").mkdir()
        (folder / f"..{number}" / "policy.yaml").write_text(content)
        (folder / "..tmp").symlink_to(f"..{number}")
        (folder / "..tmp").replace(folder / "..data")

    mount(1, text_of("one", **KEEPS))
    path = folder / "policy.yaml"
    path.symlink_to("..data/policy.yaml")
    gateway = await start(policy=str(path), gate=SOON)
    mount(2, text_of("two", **DROPS))
    await eventually(lambda: gateway.gateway.policies.main.name == "two")
    assert await deciders(gateway, 2) == {"two": 2}
    assert await gateway.metric("entrogate_policy_reloads_total", result="changed") == 1


async def test_a_file_that_is_gone_or_broken_replaces_nothing(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "main.yaml"
    gateway = await start(policy=written(path, "one", **KEEPS), gate=SOON)
    policies = gateway.gateway.policies

    def complaints() -> list[str]:
        return [each for each in caplog.messages if "policy.not_reloaded" in each]

    for number, (break_it, said) in enumerate(
        (
            (path.unlink, "neither a file nor"),
            (lambda: path.write_text('{"schema_version": 1, "name": "tw'), "main.yaml:1:"),
            (lambda: path.write_bytes(b"name: \xff"), "main.yaml:1:1: not UTF-8"),
            (lambda: path.write_text(""), "main.yaml:1:1: "),
        ),
        start=1,
    ):
        break_it()
        await eventually(lambda said=said: said in (policies.problem or ""))
        await asyncio.sleep(0.2)  # ten looks
        assert len(complaints()) == number
        assert policies.main.name == "one"
    written(path, "two", **KEEPS)
    await eventually(lambda: policies.main.name == "two")
    assert policies.problem is None
    assert len(complaints()) == 4


async def test_a_file_that_is_being_written_is_not_read(start: Start, folder: Path) -> None:
    """Each part of it parses, and each says something else."""
    path = folder / "main.yaml"
    gateway = await start(
        policy=written(path, "one", **KEEPS),
        gate={**SOON, "watch_interval_seconds": 0.1},
    )
    policies = gateway.gateway.policies
    parts = "schema_version: 1\nname: t\nmode: enforce\ntools:\n  lookup: {max_calls: 1}\n  search:"
    at = len("schema_version: 1\nname: t\n")
    with path.open("w") as file:
        file.write(parts[:at])
        for character in parts[at:]:
            file.write(character)
            file.flush()
            await asyncio.sleep(0.02)
            assert (policies.main.name, policies.problem) == ("one", None)
    await eventually(lambda: policies.main.name == "t")
    assert set(policies.main.tools) == {"lookup", "search"}


async def test_equal_arms(start: Start, folder: Path) -> None:
    main, trial = folder / "main.yaml", folder / "trial.yaml"
    gate = {
        "policy": written(main, "one", **KEEPS),
        "trial_policy": written(trial, "one", **KEEPS),
        "trial_share": 0.5,
    }
    with pytest.raises(ConfigError, match=r"trial\.yaml: the policy on trial equals the main one"):
        await start(gate=gate)
    written(trial, "two", **KEEPS)
    gateway = await start(gate=gate)
    written(main, "two", **KEEPS)
    refused = await gateway.client.post(f"{ADMIN}/reload")
    assert "equals the main one" in error_of(refused, 409)["message"]
    assert set(await arms(gateway)) == {"main", "trial"}


async def test_no_stream_breaks_while_policies_change(start: Start, folder: Path) -> None:
    path = folder / "main.yaml"
    gateway = await start(policy=written(path, "p0", **KEEPS), gate=SOON)
    words = " ".join(f"word{n}" for n in range(30))
    done: Counter[int] = Counter()
    running = True

    async def client() -> None:
        while running:
            response, raw = await gateway.stream(ask({"content": words}, tools=False))
            said = "".join(
                part["delta"].get("content") or "" for e in events(raw) for part in e["choices"]
            )
            assert said == words
            done[response.status_code] += 1

    clients = [asyncio.create_task(client()) for _ in range(8)]
    policies = gateway.gateway.policies
    for n in range(1, 11):
        if n % 3 == 0:
            await put(gateway, "trial", policy=text_of(f"t{n}", **DROPS), share=0.5)
        written(path, f"p{n}", **KEEPS)
        if n % 2:
            policies.reload_soon()
        await eventually(lambda n=n: policies.main.name == f"p{n}")
    running = False
    await asyncio.gather(*clients)
    assert set(done) == {200}
    assert done[200] > 10
    assert await gateway.metric("entrogate_policy_reload_failed") == 0


async def test_a_policy_that_cannot_be_kept_is_not_used(
    start: Start, folder: Path, store_url: str
) -> None:
    """Its decisions could not be replayed."""
    path = folder / "main.yaml"
    gateway = await start(policy=written(path, "one", **KEEPS))
    with closing(Database(StoreSettings(url=store_url))) as database:

        def rename(table: str, to: str) -> None:
            with database.writer.begin() as connection:
                connection.execute(sql(f"ALTER TABLE {table} RENAME TO {to}"))

        await asyncio.to_thread(rename, "policies", "gone")
        written(path, "two", **KEEPS)
        error_of(await gateway.client.post(f"{ADMIN}/reload"), 503)
        refused = await gateway.client.put(f"{ADMIN}/main", json={"policy": text_of("three")})
        error_of(refused, 503)
        assert await arms(gateway) == {"main": ("one", 1.0, "settings")}
        await asyncio.to_thread(rename, "gone", "policies")
    assert (await gateway.client.post(f"{ADMIN}/reload")).status_code == 200
    assert await arms(gateway) == {"main": ("two", 1.0, "settings")}

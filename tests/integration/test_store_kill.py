"""kill -9 at random moments: no acknowledged turn is missing and the database is sound."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.database import Database
from tests.integration.stored import trajectory_json

ROOT = Path(__file__).parents[2]
ROUNDS = 20


@pytest.mark.both_stores
@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_no_acknowledged_turn_is_lost(store_url: str, durability: str) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'app'}{os.pathsep}{ROOT}"}
    killer = Path(__file__).with_name("store_killer.py")
    done = subprocess.run(
        [sys.executable, str(killer), store_url, durability, str(ROUNDS), "7"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    acknowledged = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {turn_id.split("-")[0] for turn_id in acknowledged} == {f"run{n}" for n in range(ROUNDS)}

    database = Database(StoreSettings(url=store_url))
    with database.reading() as connection:
        if not database.shared:
            checked = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
            assert checked == ["ok"]
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        query = "SELECT id, n_prompt_tokens + n_tokens FROM turns"
        rows = connection.exec_driver_sql(query).all()
        counted = connection.exec_driver_sql("SELECT sum(n_turns), sum(n_calls) FROM trajectories")
        assert counted.one() == (len(rows), len(rows))
    database.close()
    stored = {turn_id: str(length) for turn_id, length in rows}
    assert acknowledged.items() <= stored.items()

    store = Store.open(
        StoreSettings(url=store_url)
    )  # opens clean, and every prompt can be put together
    for item in (await store.list_trajectories(limit=1000)).items:
        found = await trajectory_json(store, item.id, tokens=True)
        lengths = [len(turn["tokens"]["prompt_token_ids"]) for turn in found["turns"]]
        assert lengths == [turn["n_prompt_tokens"] for turn in found["turns"]]
    await store.aclose()

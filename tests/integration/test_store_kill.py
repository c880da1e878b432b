"""kill -9 at random moments: no acknowledged turn is missing and the database is sound."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from entrogate.settings import StoreSettings
from entrogate.store import Store

ROOT = Path(__file__).parents[2]
ROUNDS = 20


@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_no_acknowledged_turn_is_lost(tmp_path: Path, durability: str) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'app'}{os.pathsep}{ROOT}"}
    killer = Path(__file__).with_name("store_killer.py")
    done = subprocess.run(
        [sys.executable, str(killer), url, durability, str(ROUNDS), "7"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    acknowledged = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {turn_id.split("-")[0] for turn_id in acknowledged} == {f"run{n}" for n in range(ROUNDS)}

    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT id, n_prompt_tokens + n_tokens FROM turns").fetchall()
        counted = connection.execute("SELECT sum(n_turns), sum(n_calls) FROM trajectories")
        assert counted.fetchone() == (len(rows), len(rows))
    connection.close()
    stored = {turn_id: str(length) for turn_id, length in rows}
    assert acknowledged.items() <= stored.items()

    store = Store.open(StoreSettings(url=url))  # opens clean, and every prompt can be put together
    for item in (await store.list_trajectories(limit=1000)).items:
        found = await store.get_trajectory(item["id"], tokens=True)
        lengths = [len(turn["tokens"]["prompt_token_ids"]) for turn in found["turns"]]
        assert lengths == [turn["n_prompt_tokens"] for turn in found["turns"]]
    await store.aclose()

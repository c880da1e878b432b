"""`entrogate bench export` at a small size: its store is a valid one and the figures add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from entrogate.cli import run
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate_lab.bench.synthetic import GROUP, fill
from tests.integration.stored import trajectory_json


async def test_synthetic_trajectories_are_valid(tmp_path: Path) -> None:
    store = Store.open(StoreSettings(url=f"sqlite:///{tmp_path}/store.db"))
    await store.start()
    await fill(store, 2 * GROUP)
    page = await store.list_trajectories()
    found = await trajectory_json(store, "trajectory-4", tokens=True)
    await store.aclose()
    assert len(page.items) == 2 * GROUP
    assert [len(turn["calls"]) for turn in found["turns"]] == [1, 1, 0]
    assert [turn["branch_index"] for turn in found["turns"]] == [0, 0, 0]
    assert found["incomplete_reason"] is None
    assert found["rewards"]["n_groups"] == 2


def test_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    assert run(["bench", "export", "--trajectories", "300", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "300 rows in 1 parts" in said
    figures = json.loads(out.read_text())
    assert figures["rows"] == 300
    assert figures["peak_mib"] >= figures["imports_mib"] > 10
    assert 0 < figures["cpu_seconds"] < 60
    assert figures["rows_per_second"] == pytest.approx(300 / figures["seconds"])

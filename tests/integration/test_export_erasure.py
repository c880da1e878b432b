"""Erased trajectories and datasets: skipped by our readers at once, taken out by `--erase`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from entrogate.cli import command_line
from entrogate.export import exporter
from entrogate.export.card import card_of
from entrogate.export.counts import counts_of
from entrogate.export.dataset import CARD, Dataset
from entrogate.export.label_copy import label_dataset
from entrogate.export.tables import iter_rows, part_rows
from entrogate.label.worth import Labelling
from entrogate.store import Store
from entrogate.store.admin.erasure import ToErase
from tests.integration.test_export import ROOT, add_run, export, rows, store

pytestmark = pytest.mark.both_stores
__all__ = ["store"]


async def erase(store: Store, *names: str) -> None:
    for name in names:
        await store.admin.erase(ToErase.trajectory(name), actor="key_a")


async def run(url: str, folder: Path, *more: str) -> Result:
    command = ["export", "--store", url, "--to", str(folder), *more]
    return await asyncio.to_thread(CliRunner().invoke, command_line(), command)


def held(folder: Path) -> list[str]:
    return sorted({row["trajectory_id"] for row in rows(folder)})


async def filled(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(exporter, "PART_TRAJECTORIES", 3)
    names = [f"run{number:02}" for number in range(10)]
    for number, name in enumerate(names):
        outcome = None if number == 4 else number % 2
        await add_run(store, name, score=outcome, reduced=(True, False, None)[number % 3])
    assert export(store, out).parts == 4
    return names


async def test_what_is_erased_is_skipped_and_taken_out(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    names = await filled(store, out, monkeypatch)
    gone = ["run00", "run01", "run02", "run05"]  # the first three are a whole part
    kept = [name for name in names if name not in gone]
    before = Dataset.reading(str(out))
    await erase(store, *gone)
    assert export(store, out).trajectories == 0
    assert held(out) == names  # other readers see it until it is taken out
    source = Dataset.reading(str(out))
    found = {row["trajectory_id"] for part in iter_rows(source, ("outcome",)) for row in part}
    assert sorted(found) == kept
    label_dataset(source, str(tmp_path / "labelled"), Labelling())
    assert held(tmp_path / "labelled") == kept
    copied = Dataset.reading(str(tmp_path / "labelled"))
    assert copied.exported() == set(kept)
    done = await run(store_url, out, "--erase")
    assert "4 trajectories, 4 rows taken out, 2 parts rewritten" in done.output, done.output
    assert held(out) == kept
    after = Dataset.reading(str(out))
    assert after.exported() == set(kept)
    assert [entry.cursor for entry in after.entries] == [entry.cursor for entry in before.entries]
    assert [entry.part for entry in after.entries] == [entry.part for entry in before.entries]
    assert after.read_note(CARD) == card_of(after)
    assert card_of(after)["trajectories"] == len(kept)
    again = await run(store_url, out, "--erase")
    assert "0 trajectories, 0 rows taken out, 0 parts rewritten" in again.output
    summary = export(store, out)
    assert (summary.trajectories, summary.late) == (0, 0)
    assert held(out) == kept
    data = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert not any(name.encode() in data for name in gone)


async def test_counts_are_those_of_the_export(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted anew from rows is what was counted when they were written."""
    await filled(store, tmp_path / "out", monkeypatch)
    dataset = Dataset.reading(str(tmp_path / "out"))
    card = card_of(dataset)
    counted = ("trajectories", "with_outcome", "groups", "reducing", "unknown", "zero_calls")
    assert [card[name] for name in counted] == [10, 9, 9, 4, 3, 0]  # of run00 to run09, see above
    for entry in dataset.entries:
        found = counts_of(row for part in part_rows(dataset, entry) for row in part)
        assert found == {name: float(value) for name, value in entry.counts.items()}


async def test_a_labelled_copy(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a dataset: `--erase` takes out of it, and adds nothing to it."""
    names = await filled(store, tmp_path / "out", monkeypatch)
    copy = tmp_path / "copy"
    label_dataset(Dataset.reading(str(tmp_path / "out")), str(copy), Labelling())
    await add_run(store, "later")
    await erase(store, "run03")
    assert (await run(store_url, copy, "--erase")).exit_code == 0
    assert held(copy) == [name for name in names if name != "run03"]
    assert "labelling" in Dataset.reading(str(copy)).read_note(CARD)


async def test_erase_does_nothing_else(store_url: str, tmp_path: Path) -> None:
    for more in (("--every", "5"), ("--format", "verl"), ("--check",)):
        assert (await run(store_url, tmp_path / "out", "--erase", *more)).exit_code == 2


async def test_kill_9_while_parts_are_rewritten(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at one write after the other, it is finished by the next run, once and only once."""
    out = tmp_path / "out"
    names = await filled(store, out, monkeypatch)
    gone = names[::2]
    await erase(store, *gone)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "app")}
    command = [sys.executable, "-m", "entrogate", "export", "--store", store_url, "--to", str(out)]
    killed = 0
    for number in range(1, 9):
        child = subprocess.Popen([*command, "--erase"], env=environment, stderr=subprocess.DEVNULL)
        await asyncio.to_thread(_kill_after_changes, child, out, 1 + number % 4)
        killed += child.wait() == -signal.SIGKILL
        Dataset.reading(str(out))
        counts = Counter(row["trajectory_id"] for row in rows(out))
        assert set(counts.values()) == {1}
        assert set(names[1::2]) <= set(counts)
    assert killed >= 3
    assert (await run(store_url, out, "--erase")).exit_code == 0
    assert held(out) == names[1::2]
    assert export(store, out).trajectories == 0
    assert not list((out / "_staged").iterdir())


def _kill_after_changes(child: subprocess.Popen[bytes], out: Path, changes: int) -> None:
    """Kill the child when the folder has changed so many times, if it lives that long."""
    seen = _state(out)
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        now = _state(out)
        if now != seen:
            seen, changes = now, changes - 1
            if changes <= 0:
                child.kill()
                return


def _state(out: Path) -> frozenset[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for path in out.rglob("*"):
        try:
            found.add((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return frozenset(found)

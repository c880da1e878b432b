"""Export from a real store to real files: what is in them, once and only once, through crashes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

pytest.importorskip("pyarrow")

import pyarrow.parquet as pq

from entrogate.access import qualified
from entrogate.errors import ExportError
from entrogate.export.dataset import CARD, Dataset
from entrogate.export.exporter import export_settled
from entrogate.export.judgements import Judgements
from entrogate.export.known import Known
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.harvest import HarvestOptions
from entrogate.store.read.settled import Settling
from entrogate.types import TurnRecord
from tests.integration.limits import limited_files
from tests.unit.store.made import allowed_call, change, sequence, turn

ROOT = Path(__file__).parents[2]
LATER = 4e9  # by then everything has settled
SETTLING = Settling(quiet=30, patience=3600)
ALL: dict[str, Any] = {"settling": SETTLING, "wanted": TrajectoryFilter(complete=True)}


pytestmark = pytest.mark.both_stores


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store.open(StoreSettings(url=store_url))
    await opened.start()
    yield opened
    await opened.aclose()


async def add_run(
    store: Store, name: str, *, reduced: bool | None = True, score: float | None = 1.0, **more: Any
) -> list[TurnRecord]:
    """A trajectory of two turns: a call, then an answer."""
    more = {"task_id": f"task-{name[:1]}", **more}
    first = turn(name, calls=allowed_call(), **more)
    (head,) = await store.commit_turns([first])
    second = turn(name, parent=first, head=head, change=change(reduced), n_messages=4, **more)
    await store.commit_turns([second])
    if score is not None:
        await store.add_feedback(trajectory_id=name, score=score)
    return [first, second]


def export(store: Store, folder: Path, *, now: float = LATER, **wanted: Any) -> Any:
    taken = replace(TrajectoryFilter(complete=True), **wanted)
    with Dataset.writing(str(folder)) as dataset:
        return export_settled(store, dataset, settling=SETTLING, wanted=taken, now=now)


def rows(folder: Path) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("date=*/*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


async def test_a_row_is_the_sequence_that_was_stored(store: Store, tmp_path: Path) -> None:
    first, second = await add_run(store, "a1")
    assert export(store, tmp_path / "out").trajectories == 1
    (row,) = rows(tmp_path / "out")
    whole = sequence(second)
    assert row["input_ids"] == whole.tolist()
    # By hand: the prompt (5), the sample (6), what the client added (5), the second sample (6).
    sampled = [0] * 5 + [1, 0, 1, 1, 1, 1] + [0] * 5 + [1, 0, 1, 1, 1, 1]
    assert row["loss_mask"] == sampled
    assert row["labels"] == [t if m else -100 for t, m in zip(whole, sampled, strict=True)]
    assert row["segment_id"] == [-1] * 5 + [0] * 6 + [-1] * 5 + [1] * 6
    assert row["token_kind"] == [4] * 5 + [0] * 5 + [5] + [3] * 5 + [0] * 5 + [5]
    logprobs = np.zeros(22, dtype=np.float32)
    logprobs[5:11], logprobs[16:22] = first.capture.logprobs, second.capture.logprobs
    assert np.array_equal(np.float32(row["old_logprobs"]), logprobs * sampled)
    middle = (first.capture.entropy_lower + first.capture.entropy_upper) / 2
    assert np.array_equal(np.float32(row["entropy"][5:11]), middle)
    assert np.isnan(np.float32(row["entropy"][:5])).all()
    assert (row["outcome"], row["outcome_source"], row["reward_sparse"]) == (1.0, "score", 1.0)
    assert (row["n_calls"], row["n_reducing"], row["n_null"]) == (1, 1, 0)
    (call,) = row["calls"]
    assert (call["reduced"], call["name"], call["decision"]) == (True, "free", "allow")
    assert call["delta_h"] == pytest.approx(-0.5)
    assert row["reward_dense"] == [1.5]
    assert row["group_id"] == "task-a"
    assert (row["entropy_kind"], row["entropy_k"], row["logprobs_mode"]) == ("topk", 20, "raw")
    messages = orjson.loads(row["messages"])
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]


async def test_tenants_are_taken_one_by_one_and_not_compared(store: Store, tmp_path: Path) -> None:
    """Tasks of the same name are each tenant's own, since advantages compare those of a group."""
    for name in ("a1", "a2"):
        await add_run(store, name)
        await add_run(store, qualified("acme", name), task_id="task-a")
    export(store, tmp_path / "all")
    groups = {row["trajectory_id"]: row["group_id"] for row in rows(tmp_path / "all")}
    ours = {"a1": "task-a", "a2": "task-a"}
    assert groups == ours | {"acme~a1": "acme~task-a", "acme~a2": "acme~task-a"}
    for tenant, there in (("acme", {"acme~a1", "acme~a2"}), ("", set(ours)), ("other", set())):
        out = tmp_path / f"of-{tenant}"
        export(store, out, tenant=tenant)
        assert {row["trajectory_id"] for row in rows(out)} == there


async def test_a_fork_is_a_row_of_its_own_and_its_prefix_is_not_trained_twice(
    store: Store, tmp_path: Path
) -> None:
    first, _ = await add_run(store, "a1")
    head = await store.head_of_call(first.calls[0].call_id)
    fork = turn("a1", parent=first, head=head, change=change(False))
    await store.commit_turns([fork])
    export(store, tmp_path / "out")
    main, other = rows(tmp_path / "out")
    assert (main["branch_index"], other["branch_index"]) == (0, 1)
    assert other["input_ids"] == sequence(fork).tolist()
    assert other["loss_mask"] == [0] * 16 + [1, 0, 1, 1, 1, 1]
    assert sum(main["loss_mask"]) + sum(other["loss_mask"]) == 15


async def test_a_judged_fork_names_the_calls_of_the_part_it_shares(
    store: Store, tmp_path: Path
) -> None:
    first, _ = await add_run(store, "a1", score=None)
    head = await store.head_of_call(first.calls[0].call_id)
    fork = turn("a1", parent=first, head=head, change=change(False))
    await store.commit_turns([fork])
    await store.add_feedback(response_id=fork.response_id, score=1)
    export(store, tmp_path / "out")
    main, other = rows(tmp_path / "out")
    assert (main["outcome"], other["outcome"]) == (None, 1.0)
    (call,) = other["calls"]
    assert (call["name"], call["start"], call["end"], call["reduced"]) == ("free", 0, 0, False)
    assert call["parallel_group"] == main["calls"][0]["parallel_group"]
    assert (other["n_calls"], other["n_reducing"], other["reward_sparse"]) == (1, 0, 0.0)
    assert other["reward_dense"] == [1.0]
    judgements = Judgements()
    for row in (main, other):
        judgements.take(row)
    assert judgements.found["a1"].labels == {call["parallel_group"]: False}


async def test_what_has_not_settled_waits(store: Store, tmp_path: Path) -> None:
    now = time.time()
    await add_run(store, "a1", created_at=now)
    await add_run(store, "b1", created_at=now, score=None)
    assert export(store, tmp_path / "out", now=now + 20).trajectories == 0
    assert export(store, tmp_path / "out", now=now + 60).trajectories == 1
    assert export(store, tmp_path / "out", now=now + 60).trajectories == 0
    assert export(store, tmp_path / "out", now=now + 4000).trajectories == 1
    assert [row["trajectory_id"] for row in rows(tmp_path / "out")] == ["a1", "b1"]
    assert rows(tmp_path / "out")[1]["outcome"] is None


async def test_pages_and_batches_lose_nothing(store: Store) -> None:
    for name in ("c1", "a1", "b1", "e1", "d1"):
        await store.commit_turns([turn(name, created_at=1.0, duration_seconds=1.0)])

    def ids(**sizes: Any) -> list[str]:
        found = store.settled(HarvestOptions(**ALL, now=LATER, **sizes))
        return [each.listed.trajectory_id for each, _ in found]

    assert ids() == ["c1", "a1", "b1", "e1", "d1"]
    for page in (1, 2, 3, 5, 6):
        for batch in (1, 2, 9):
            assert ids(page=page, batch=batch) == ids()


async def test_what_changes_between_listing_and_reading_settles_anew(store: Store) -> None:
    now = time.time()
    for name in ("a1", "b1", "c1"):
        await add_run(store, name, created_at=now - 10)
    harvest = store.settled(HarvestOptions(**ALL, now=now + 60, batch=1))
    found = iter(harvest)
    first, _ = next(found)
    assert first.listed.trajectory_id == "a1"
    await store.add_feedback(trajectory_id="b1", score=0.0)
    assert [each.listed.trajectory_id for each, _ in found] == ["c1"]
    again = store.settled(HarvestOptions(**ALL, now=now + 90, after=harvest.cursor))
    assert [each.listed.trajectory_id for each, _ in again] == ["b1"]


async def test_membership_takes_no_hash_for_an_answer(store: Store, tmp_path: Path) -> None:
    await add_run(store, "a1")
    await add_run(store, "b1")
    export(store, tmp_path / "out")
    known = Known(Dataset.reading(str(tmp_path / "out")))
    assert len(known) == 2
    assert [name in known for name in ("a1", "b1", "c1")] == [True, True, False]
    (entry,) = (tmp_path / "out" / "_manifest").iterdir()
    known = Known(Dataset.reading(str(tmp_path / "out")))  # has looked nothing up yet
    entry.write_bytes(entry.read_bytes().replace(b'"b1"', b'"z1"'))  # another id of b1's hash
    assert [name in known for name in ("a1", "b1")] == [True, False]


async def test_each_is_exported_once_even_when_it_changes_later(
    store: Store, tmp_path: Path
) -> None:
    await add_run(store, "a1")
    await add_run(store, "b1")
    assert export(store, tmp_path / "out", now=LATER).trajectories == 2
    await store.add_feedback(trajectory_id="a1", score=0.0)
    await add_run(store, "c1")
    summary = export(store, tmp_path / "out", now=LATER)
    assert (summary.trajectories, summary.late) == (1, 1)
    ids = Counter(row["trajectory_id"] for row in rows(tmp_path / "out"))
    assert ids == {"a1": 1, "b1": 1, "c1": 1}
    card = orjson.loads((tmp_path / "out" / CARD).read_bytes())
    assert (card["trajectories"], card["parts"], card["groups"]) == (3, 2, 3)
    assert card["reducing_share"] == 1.0


async def test_filters(store: Store, tmp_path: Path) -> None:
    await add_run(store, "a1")
    await add_run(store, "b1", score=None)
    await add_run(store, "c1", capture_gap="count_mismatch")
    await add_run(store, "d1", model="other")

    def ids(name: str, **wanted: Any) -> list[str]:
        export(store, tmp_path / name, **wanted)
        return sorted(row["trajectory_id"] for row in rows(tmp_path / name))

    assert ids("all") == ["a1", "b1", "d1"]
    assert ids("judged", has_outcome=True) == ["a1", "d1"]
    assert ids("gaps", complete=None) == ["a1", "b1", "c1", "d1"]
    assert ids("model", model="other") == ["d1"]
    assert ids("none", since=LATER) == []


async def test_a_crash_between_commit_and_rename_is_mended(store: Store, tmp_path: Path) -> None:
    await add_run(store, "a1")
    out = tmp_path / "out"
    export(store, out)
    (part,) = out.glob("date=*/*.parquet")
    staged = out / "_staged" / "000000.parquet"
    part.rename(staged)  # as if it had died there
    (out / "_staged" / "000001.parquet").write_bytes(b"half")
    with pytest.raises(ExportError, match="missing; run the export again"):
        Dataset.reading(str(out))
    assert export(store, out).trajectories == 0
    assert len(rows(out)) == 1
    assert list((out / "_staged").iterdir()) == []
    part.unlink()
    with pytest.raises(ExportError, match="nowhere else"):
        export(store, out)


async def test_one_writer_at_a_time(store: Store, tmp_path: Path) -> None:
    alone = pytest.raises(ExportError, match="another export is writing")
    with Dataset.writing(str(tmp_path / "out")), alone:
        export(store, tmp_path / "out")


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(ExportError, match="cannot write to"), Dataset.writing(str(blocked / "x")):
        pass
    with pytest.raises(ExportError, match="no dataset"):
        Dataset.reading(str(tmp_path))
    with pytest.raises(ExportError, match="cannot use"), Dataset.writing("nonsense://x"):
        pass


async def test_a_full_disk_leaves_what_was_there(store: Store, tmp_path: Path) -> None:
    """The kernel fails the write, as on a full disk: the dataset is as before, and goes on."""
    out = tmp_path / "out"
    await add_run(store, "a1")
    export(store, out)
    await add_run(store, "a2")
    with limited_files(1000), pytest.raises(ExportError, match=r"cannot write to .*File too large"):
        export(store, out)
    assert [row["trajectory_id"] for row in rows(out)] == ["a1"]
    assert len(Dataset.reading(str(out)).entries) == 1
    assert export(store, out).trajectories == 1
    assert sorted(row["trajectory_id"] for row in rows(out)) == ["a1", "a2"]


async def test_another_schema_version_is_refused(store: Store, tmp_path: Path) -> None:
    await add_run(store, "a1")
    export(store, tmp_path / "out")
    (entry,) = (tmp_path / "out" / "_manifest").iterdir()
    entry.write_bytes(entry.read_bytes().replace(b'"schema_version":1', b'"schema_version":9'))
    with pytest.raises(ExportError, match="schema version 9"):
        Dataset.reading(str(tmp_path / "out"))


KILLED = """
import sys, time
from pathlib import Path
from entrogate.export import exporter
exporter.PART_TRAJECTORIES = 3
from entrogate.cli import run
print("ready", flush=True)
sys.exit(run(["export", "--store", sys.argv[1], "--to", sys.argv[2], "--settle", "1"]))
"""


async def test_kill_9_at_random_moments(store: Store, store_url: str, tmp_path: Path) -> None:
    """No trajectory twice, none lost."""
    for number in range(150):
        made = await add_run(store, f"run{number:03}", score=number % 2)
        assert len(made) == 2
    url, out = store_url, tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'app'}{os.pathsep}{ROOT}"}
    time.sleep(1.1)  # they settle
    rng = random.Random(5)
    killed = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, url, str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.35))
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert killed >= 6
    summary = export(store, out)
    ids = Counter(row["trajectory_id"] for row in rows(out))
    assert set(ids.values()) == {1}
    assert len(ids) == 150
    assert summary.late == 0


async def test_other_readers(store: Store, tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        await add_run(store, name)
    out = tmp_path / "out"
    export(store, out)
    pattern = f"{out}/date=*/*.parquet"
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"select trajectory_id, len(input_ids), date from '{pattern}' order by 1"
    ).fetchall()
    assert [(name, length) for name, length, _ in found] == [("a1", 22), ("a2", 22), ("b1", 22)]
    pandas = pytest.importorskip("pandas")
    frame = pandas.concat([pandas.read_parquet(p) for p in out.glob("date=*/*.parquet")])
    assert frame["outcome"].tolist() == [1.0, 1.0, 1.0]
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(loaded["trajectory_id"]) == ["a1", "a2", "b1"]


async def test_a_late_record_with_the_same_moment_is_not_passed_over(
    store: Store, tmp_path: Path
) -> None:
    """The cursor orders by moment and id: equal moments are all taken."""
    for name in ("c1", "a1", "b1"):
        first = turn(name, created_at=1.0, duration_seconds=1.0)
        await store.commit_turns([replace(first, finish_reason="length")])
    assert export(store, tmp_path / "out").trajectories == 3
    assert [row["truncated"] for row in rows(tmp_path / "out")] == [True] * 3

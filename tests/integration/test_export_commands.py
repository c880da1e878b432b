"""`entrogate export`, `label` and `convert` on real stores: what they write and refuse."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from entrogate.cli import run
from entrogate.export.dataset import CARD, Dataset
from entrogate.export.exporter import export_settled
from entrogate.export.formats import FORMATS
from entrogate.label.worth import Labelling
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.options import opened
from entrogate.store.read.settled import Settling
from entrogate.train.data import label_rows, read_rows
from entrogate.types import Span, SpanKind
from tests.unit.store.made import allowed_call, capture, change, turn

SPANS = slice(5, 11), slice(16, 22)  # the sampled tokens of the two turns of a run
SAMPLED = [1, 0, 1, 1, 1, 1]  # the second token of a turn was altered


def filled(url: str, fill: Callable[[Store], Awaitable[None]]) -> None:
    """A store, filled and closed."""

    async def work() -> None:
        store = Store.open(StoreSettings(url=url))
        await store.start()
        await fill(store)
        await store.aclose()

    asyncio.run(work())


async def add_run(
    store: Store, name: str, *, score: float | None, reduced: bool | None, **more: Any
) -> None:
    """A call, then an answer; 22 tokens: prompt 5, sampled 6, result 5, sampled 6."""
    spans = [(SpanKind.REASONING, 0, 3), (SpanKind.CALL, 3, 5), (SpanKind.CONTROL, 5, 6)]
    calling = tuple(Span(kind=kind, start=start, stop=stop) for kind, start, stop in spans)
    task = f"task-{name[:1]}"
    first = turn(name, calls=allowed_call(), task_id=task, spans=calling, **more)
    (head,) = await store.commit_turns([first])
    second = turn(name, parent=first, head=head, change=change(reduced), n_messages=4, **more)
    await store.commit_turns([second])
    if score is not None:
        await store.add_feedback(trajectory_id=name, score=score)


async def three_and_more(store: Store) -> None:
    """Task a: right with a useful call, right with a useless one, wrong; b: alone; c: unjudged."""
    await add_run(store, "a1", score=1.0, reduced=True)
    await add_run(store, "a2", score=1.0, reduced=False)
    await add_run(store, "a3", score=0.0, reduced=True)
    await add_run(store, "b1", score=1.0, reduced=True)
    await add_run(store, "c1", score=None, reduced=True)
    await add_run(store, "a4", score=1.0, reduced=True, capture_gap="count_mismatch")


pytestmark = pytest.mark.both_stores


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
def data(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six runs, one with a gap in its capture; two parts."""
    monkeypatch.setattr("entrogate.export.exporter.PART_TRAJECTORIES", 3)
    filled(url, three_and_more)
    return exported(url, tmp_path / "data", complete=None)


def exported(url: str, out: Path, *, complete: bool | None = True) -> Path:
    """All that is stored, as if everything had settled."""
    with opened(url) as store, Dataset.writing(str(out)) as dataset:
        wanted = TrajectoryFilter(complete=complete)
        export_settled(store, dataset, settling=Settling(), wanted=wanted, now=4e9)
    return out


def export_of(url: str) -> list[str]:
    return ["export", "--store", url, "--settle", "1", "--patience", "1"]


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    parts = sorted(folder.glob("date=*/*.parquet"))
    found = [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]
    return {row["trajectory_id"]: row for row in sorted(found, key=lambda r: r["trajectory_id"])}


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_utc")
def test_times_are_utc_wherever_the_machine_is(url: str, tmp_path: Path) -> None:
    noon = 1_700_049_600.0  # 2023-11-15T12:00:00Z

    async def fill(store: Store) -> None:
        await add_run(store, "before", score=1.0, reduced=True, created_at=noon - 1)
        await add_run(store, "at", score=1.0, reduced=True, created_at=noon)
        await add_run(store, "after", score=1.0, reduced=True, created_at=noon + 1)

    filled(url, fill)
    time.sleep(1.1)
    bounds = ["--since", "2023-11-15T12:00:00", "--until", "2023-11-15 12:00:01"]
    assert run([*export_of(url), "--to", str(tmp_path / "out"), *bounds]) == 0
    assert list(rows(tmp_path / "out")) == ["at"]


def test_label_by_hand(data: Path, tmp_path: Path) -> None:
    before, out = rows(data), tmp_path / "labelled"
    said = ["--reward", "dense", "--baseline", "mean", "--alpha", "0.5"]
    assert run(["label", str(data), "--to", str(out), *said]) == 0
    after = rows(out)
    assert [row["reward_sparse"] for row in after.values()] == [1.0, 0.0, 0.0, None, 1.0, None]
    assert [row["reward_dense"] for row in after.values()] == [
        *([1.5], [1.0], [0.0]),
        [None],  # no label from an incomplete capture
        [1.5],
        [None],  # no outcome
    ]
    # Outcomes 1, 1, 0 and bonuses 0.5, 0, 0 over their means 2/3 and 1/6; the call is the first
    # turn's. The advantages of tokens that were altered or not sampled are 0.
    expected = {"a1": (2 / 3, 1 / 3), "a2": (1 / 6, 1 / 3), "a3": (-5 / 6, -2 / 3)}
    for name, worth in expected.items():
        tokens = np.zeros(22)
        for span, advantage in zip(SPANS, worth, strict=True):
            tokens[span] = np.multiply(advantage, SAMPLED)
        np.testing.assert_allclose(after[name]["advantages"], tokens, atol=1e-6)
    assert [after[name]["advantages"] for name in ("b1", "c1", "a4")] == [None] * 3
    ours = {"reward_sparse", "reward_dense", "advantages"}
    for name, row in after.items():
        kept = orjson.dumps({k: v for k, v in row.items() if k not in ours})
        assert kept == orjson.dumps({k: v for k, v in before[name].items() if k not in ours})
    card = json.loads((out / CARD).read_bytes())
    assert card["trajectories"] == 6
    assert card["labelling"]["options"]["alpha"] == 0.5
    parts = [[e.part for e in Dataset.reading(str(folder)).entries] for folder in (data, out)]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 2


@pytest.mark.parametrize("reward", ["outcome", "otc", "sparse", "dense"])
def test_the_labels_are_the_trainers_and_it_finds_them_again(
    data: Path, tmp_path: Path, reward: Any
) -> None:
    out = tmp_path / "labelled"
    assert run(["label", str(data), "--to", str(out), "--reward", reward]) == 0
    written = rows(out)
    plain, _ = label_rows(read_rows([str(data)]), Labelling(reward=reward))
    again, _ = label_rows(read_rows([str(out)]), Labelling(reward=reward))
    assert [s.trajectory_id for s in plain] == ["a1", "a2", "a3"]
    for one, two in zip(plain, again, strict=True):
        assert one.trajectory_id == two.trajectory_id
        for name in ("input_ids", "mask", "advantages", "old_logprobs"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        assert np.array_equal(np.float32(written[one.trajectory_id]["advantages"]), one.advantages)


def test_trl_sft(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sft.parquet"
    assert run(["convert", str(data), "--format", "trl-sft", "--to", str(out)]) == 0
    native = rows(data)
    table = pq.read_table(out)
    assert sorted(table["trajectory_id"].to_pylist()) == ["a1", "a2", "a3", "b1", "c1"]
    for row in table.to_pylist():
        for name in ("input_ids", "labels", "outcome"):
            assert row[name] == native[row["trajectory_id"]][name]
    assert table.schema.metadata[b"entrogate.format"] == b"trl-sft"


def test_trl_async_has_a_sample_for_each_advantage(data: Path, tmp_path: Path) -> None:
    labelled, out = tmp_path / "labelled", tmp_path / "async.parquet"
    assert run(["label", str(data), "--to", str(labelled), "--baseline", "mean"]) == 0
    assert run(["convert", str(labelled), "--format", "trl-async", "--to", str(out)]) == 0
    native, samples = rows(labelled), pq.read_table(out).to_pylist()
    assert [(s["trajectory_id"], round(s["advantage"], 6)) for s in samples] == [
        *[("a1", 0.333333), ("a1", 0.666667), ("a2", 0.166667), ("a2", 0.333333)],
        *[("a3", -0.833333), ("a3", -0.666667)],
    ]
    assert [len(s["input_ids"]) for s in samples] == [22, 11, 11, 22, 11, 22]
    for name in ("a1", "a2", "a3"):
        row = native[name]
        total, worth, logprobs = np.zeros(22), np.zeros(22), np.zeros(22)
        for s in (s for s in samples if s["trajectory_id"] == name):
            n = len(s["input_ids"])
            assert s["input_ids"] == row["input_ids"][:n]
            assert s["temperature"] == 1.0, "the log-probs are raw"
            mask = np.array(s["completion_mask"])
            total[:n] += mask
            worth[:n] += mask * s["advantage"]
            logprobs[:n] += s["old_log_probs"]
        assert total.tolist() == row["loss_mask"], "every token in one sample"
        np.testing.assert_allclose(worth, row["advantages"])
        np.testing.assert_allclose(logprobs, row["old_logprobs"])


def test_verl(data: Path, tmp_path: Path) -> None:
    labelled, out = tmp_path / "labelled", tmp_path / "verl.parquet"
    assert run(["label", str(data), "--to", str(labelled), "--reward", "sparse"]) == 0
    for source, name in ((data, "unlabelled.parquet"), (labelled, "verl.parquet")):
        assert run(["convert", str(source), "--format", "verl", "--to", str(tmp_path / name)]) == 0
    found = {row["extra_info"]["trajectory_id"]: row for row in pq.read_table(out).to_pylist()}
    assert sorted(found) == ["a1", "a2", "a3", "b1", "c1"]
    first, native = found["a1"], rows(labelled)["a1"]
    assert (first["data_source"], first["ability"]) == ("entrogate", "tool_use")
    asked = json.loads(native["messages"])[0]["content"]
    assert first["prompt"] == [{"role": "user", "content": asked}]
    assert first["reward_model"] == {"style": "rule", "ground_truth": ""}
    extra = first["extra_info"]
    assert extra["prompt_ids"] == native["input_ids"][:5]
    assert extra["response_ids"] == native["input_ids"][5:]
    assert extra["response_mask"] == native["loss_mask"][5:]
    assert extra["response_logprobs"] == native["old_logprobs"][5:]
    assert extra["advantages"] == native["advantages"][5:]
    assert (extra["reward_score"], extra["outcome"]) == (1.0, 1.0)
    unlabelled = pq.read_table(tmp_path / "unlabelled.parquet")["extra_info"].to_pylist()
    assert [extra["advantages"] for extra in unlabelled] == [None] * 5


def test_jsonl_has_every_column_and_null_for_nan(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert run(["convert", str(data), "--format", "jsonl", "--to", str(out)]) == 0
    lines = [json.loads(line, parse_constant=pytest.fail) for line in out.read_text().splitlines()]
    native = rows(data)
    assert len(lines) == 6

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    for line in lines:
        row = native[line["trajectory_id"]]
        assert list(line) == list(row)
        for name, value in row.items():
            if name in ("old_logprobs", "entropy", "tail_mass", "margin"):
                assert [v is None for v in line[name]] == [math.isnan(v) for v in value]
                known = [(a, b) for a, b in zip(line[name], value, strict=True) if a is not None]
                assert all(np.float32(a) == np.float32(b) for a, b in known)
            else:
                assert line[name] == plain(value)


def test_export_in_another_format_is_export_and_convert(
    url: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time.sleep(1.1)  # they settle
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(["convert", str(data), "--format", "jsonl", "--to", str(one)]) == 0
    export = [*export_of(url), "--incomplete", "--format", "jsonl", "--to"]
    assert run([*export, str(two)]) == 0
    assert one.read_bytes() == two.read_bytes()
    assert run([*export, str(two)]) == 1
    assert f"{two} exists already" in capsys.readouterr().err
    assert run([*export, str(tmp_path / "three"), "--every", "5"]) == 2
    asynchronous = [*export_of(url), "--format", "trl-async", "--to", str(tmp_path / "four")]
    assert run(asynchronous) == 2
    assert "needs advantages" in capsys.readouterr().err


def test_what_cannot_be_converted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def refused(*words: str, source: Path = data, form: str = "trl-sft", to: Path | None = None):
        target = to or out / "new"
        assert run(["convert", str(source), "--format", form, "--to", str(target)]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert all(word in message for word in words), message
        assert list(out.iterdir()) == [], "nothing is left behind"

    refused("trl-async", "none with advantages", "entrogate label", form="trl-async")
    refused("is no dataset", source=tmp_path)
    refused("exists already", to=data)
    (tmp_path / "file").write_text("x")
    refused("cannot write to", to=tmp_path / "file" / "x")
    *_, part = sorted(data.glob("date=*/*.parquet"))
    whole = pq.read_table(part)
    pq.write_table(whole.drop_columns(["labels", "complete"]), part)
    refused("lacks the columns complete, labels")
    version = whole.schema.get_field_index("schema_version")
    nine = pa.array([9] * len(whole), pa.int32())
    pq.write_table(whole.set_column(version, "schema_version", nine), part)
    refused("schema version 9", "reads 1")
    assert run(["label", str(data), "--to", str(out / "new")]) == 1
    assert "schema version 9" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    part.write_bytes(part.read_bytes()[:-100])
    refused("no readable Parquet")
    part.unlink()
    refused("is missing; run the export again")


def test_missing_log_probs_are_named(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fill(store: Store) -> None:
        for score in (0, 1):
            gone = replace(capture(6), logprobs=np.full(6, np.nan, dtype=np.float32))
            await store.commit_turns([turn(f"t{score}", task_id="t", capture=gone)])
            await store.add_feedback(trajectory_id=f"t{score}", score=score)

    filled(url, fill)
    data, labelled = str(exported(url, tmp_path / "data")), str(tmp_path / "labelled")
    assert run(["label", data, "--to", labelled]) == 0
    convert = ["convert", labelled, "--format", "trl-async", "--to", str(tmp_path / "out")]
    assert run(convert) == 1
    assert "lacks behaviour log-probs" in capsys.readouterr().err


def test_every_format_is_in_the_manual() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in page] == []

"""`entrogate calibrate` over a store: what it writes, what it leaves out, what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from entrogate.calibrate.paired import under
from entrogate.calibrate.samples import read_log
from entrogate.cli import command_line
from entrogate.gate.calibrated import CalibrationState, calibration_state
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Statistic
from entrogate.model_hashes import ModelHashes
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.types import Estimator, Mode
from tests.integration.calibrating import POLICY, add, calibrate, filled
from tests.unit.calibrate.world import features, segment
from tests.unit.store.made import capture


async def fill(store: Store, n: int = 240, seed: int = 0) -> None:
    """``n`` trajectories whose largest entropy tells whether the model is right alone."""
    random = np.random.default_rng(seed)
    for number in range(n):
        u = random.uniform(0.0, 3.0)
        right = bool(random.random() < 1 / (1 + np.exp(4 * (u - 1.5))))
        seen = features(segment=segment(u))
        await add(store, f"t{number}", seen, right_alone=right)


async def named(store: Store) -> None:
    await store.remember_model(["almanac"], ModelHashes(tokenizer="abc", chat_template="def"))
    await fill(store)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store with 240 trajectories of a known model; nobody writes to it."""
    return filled(tmp_path_factory.mktemp("full"), named)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(POLICY, encoding="utf-8")
    return tmp_path


def read_samples(folder: Path, url: str) -> list[Any]:
    store = Store.open(StoreSettings(url=url), read_only=True)
    try:
        base = load_policy(folder / "mine.yaml")
        return read_log(store.iter_paired(), base, draft_tokens=8).samples
    finally:
        asyncio.run(store.aclose())


def test_a_policy_with_a_promise_a_report_and_json(folder: Path, full: str) -> None:
    url, out, report = full, folder / "calibrated.yaml", folder / "report.html"

    done = calibrate(folder, url, "--out", str(out), "--report", str(report))

    assert done.exit_code == 0, done.output
    assert "model almanac, weights base, tokenizer abc, estimator topk" in done.output
    assert "certified" in done.output
    assert "shadows judged by: gold 240" in done.output
    written = load_policy(out)
    block = written.calibration
    assert block is not None
    assert (block.model, block.weights, block.tokenizer) == ("almanac", "base", "abc")
    assert block.estimator is Estimator.TOPK
    assert (block.max_loss, block.delta) == (0.05, 0.1)
    assert block.n == 120
    told = json.loads(calibrate(folder, url, "--json").stdout)
    row = told["rows"][0]
    assert told["data"] == block.data
    assert row["threshold"] == written.defaults.threshold
    assert row["upper"] <= 0.05
    assert row["saved"]["value"] > 0.1
    # What the file promises is what the gate does with it.
    samples = read_samples(folder, url)
    assert sum(under(written, sample).loss for sample in samples) >= row["losses"]
    saved = sum(under(written, sample).saved for sample in samples) / len(samples)
    assert saved == pytest.approx(row["saved"]["value"], abs=0.1)
    page = report.read_text(encoding="utf-8")
    assert "entropy_mean" in page
    assert not re.search(r"<script|<link|src=|@import|url\(", page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 1 + len(row["signals"])
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_the_block_shows_every_edit_but_of_what_may_be_changed(folder: Path, full: str) -> None:
    out = folder / "calibrated.yaml"
    calibrate(folder, full, "--out", str(out))
    text = out.read_text(encoding="utf-8")

    def state(content: dict[str, Any], **where: Any) -> CalibrationState:
        path = folder / "edited.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        known = {"models": ["almanac", "alias"], "weights": "base"} | where
        return calibration_state(load_policy(path), **known)

    def changed(**values: Any) -> dict[str, Any]:
        return yaml.safe_load(text) | values

    plain = changed()
    assert state(plain) is CalibrationState.VALID
    assert state(changed(mode="enforce", name="other", audit={"share": 0.1})) is (
        CalibrationState.VALID
    )
    assert state(changed(defaults=plain["defaults"] | {"threshold": 9.0})) is (
        CalibrationState.EDITED
    )
    assert state(changed(tools=plain["tools"] | {"delete": {}})) is CalibrationState.EDITED
    assert state(changed(budget={"calls_per_trajectory": 1})) is CalibrationState.EDITED
    block = plain["calibration"]
    assert state(changed(calibration=block | {"max_loss": 0.01})) is CalibrationState.EDITED
    assert state(changed(calibration=block | {"hash": "0" * 32})) is CalibrationState.EDITED
    without = {key: value for key, value in plain.items() if key != "calibration"}
    assert state(without) is CalibrationState.NONE
    assert state(plain, models=["other"]) is CalibrationState.OTHER_MODEL
    assert state(plain, weights="lora-7") is CalibrationState.OTHER_WEIGHTS


def test_the_tokenizer_is_compared_where_both_are_known_alike(folder: Path, full: str) -> None:
    out = folder / "calibrated.yaml"
    calibrate(folder, full, "--out", str(out))
    written = load_policy(out)

    def state(tokenizer: str) -> CalibrationState:
        return calibration_state(written, models=["almanac"], weights="base", tokenizer=tokenizer)

    assert state("abc") is CalibrationState.VALID
    assert state("xyz") is CalibrationState.OTHER_TOKENIZER
    assert state("") is CalibrationState.VALID
    assert state("probe-123") is CalibrationState.VALID  # found in another way: not comparable


def test_each_reason_to_leave_a_trajectory_out_is_counted(folder: Path) -> None:
    sure, broken = features(segment=segment(0.2)), features(segment=segment(np.nan))

    async def work(store: Store) -> None:
        await add(store, "good", sure)
        await add(store, "untold", sure, feedback=False)
        await add(store, "contradicted", sure)
        await store.add_feedback(trajectory_id="contradicted", score=0.0)
        await store.add_feedback(trajectory_id="contradicted", score=1.0)
        await add(store, "enforced", sure, mode=Mode.ENFORCE)
        await add(store, "gap", sure, capture_gap="truncated")
        await add(store, "failed", sure, error="upstream went away")
        await add(store, "unread", broken)
        await add(store, "mail", features("mail", segment=segment(0.2)))
        await add(store, "no shadow", sure, shadowed=False)
        await add(store, "wrong", sure, feedback=False)
        await store.add_feedback(trajectory_id="wrong", score=0.0)  # nothing to agree with
        await add(store, "task a", sure, task_id="a")
        await add(store, "task b", sure, task_id="a")

    done = calibrate(folder, filled(folder, work), "--json")

    told = json.loads(done.stdout)
    assert done.exit_code == 3
    assert told["left_out"] == {
        "no_outcome": 1,
        "contradictory_outcomes": 1,
        "not_observed": 1,
        "capture_gap": 1,
        "incomplete": 1,
        "bad_features": 1,
        "not_gated": 1,
        "shadow_missing": 1,
        "shadow_unjudged": 1,
        "same_task": 1,
    }
    assert told["n"] == 2
    assert told["certified"] is False
    assert told["needs"] == 88  # 45 in the certifying half, one of which is there


def test_an_empty_store_says_what_it_would_take(folder: Path) -> None:
    async def work(store: Store) -> None:
        await add(store, "no shadow", features(segment=segment(0.2)), shadowed=False)

    done = calibrate(folder, filled(folder, work), "--max-loss", "0.1")

    assert done.exit_code == 3
    assert "at least 44 trajectories with an outcome" in done.stderr
    assert "left out: shadow_missing 1" in done.stderr
    told = json.loads(calibrate(folder, f"sqlite:///{folder / 'entrogate.db'}", "--json").stdout)
    assert (told["certified"], told["needs"], told["n"]) == (False, 90, 0)


def test_a_log_of_several_models_is_refused_with_the_list_until_one_is_picked(
    folder: Path,
) -> None:
    async def work(store: Store) -> None:
        for number in range(60):
            await add(store, f"a{number}", features(segment=segment(0.2)))
        for number in range(30):
            seen = features(segment=segment(0.2))
            await add(store, f"b{number}", seen, weight_version="lora-1")
        await add(store, "c", features(segment=segment(0.2)), model="other")

    url = filled(folder, work)

    refused = CliRunner().invoke(command_line(), ["calibrate", "--store", url])
    # The one-line form that the command prints:
    assert "pick one with --model, --weights, --tokenizer or --estimator" in str(refused.exception)
    assert "model almanac, weights lora-1, tokenizer ?, estimator topk: 30" in str(
        refused.exception
    )
    picked = calibrate(folder, url, "--weights", "lora-1", "--json")
    assert json.loads(picked.stdout)["origin"]["weights"] == "lora-1"
    assert json.loads(picked.stdout)["left_out"] == {"other_model": 61}
    model = calibrate(folder, url, "--model", "almanac", "--weights", "base", "--json")
    assert json.loads(model.stdout)["n"] == 60


def test_the_draft_is_measured_on_the_first_tokens_of_the_stored_shadow(folder: Path) -> None:
    said = capture(12, seed=3, exact=True)

    async def work(store: Store) -> None:
        await add(store, "one", features(segment=None), draft=said)

    url = filled(folder, work)
    store = Store.open(StoreSettings(url=url), read_only=True)
    base = load_policy(folder / "mine.yaml")
    drafts = {}
    for length in (4, 8, 64):
        log = read_log(store.iter_paired(), base, draft_tokens=length)
        drafts[length] = log.samples[0].turns[0].features[0].draft
    asyncio.run(store.aclose())

    assert [draft.n_tokens for draft in drafts.values()] == [4, 8, 11]  # the last one ends it
    assert drafts[4].max.upper == pytest.approx(float(said.entropy_upper[:4].max()))
    assert drafts[8].mean.lower == pytest.approx(float(said.entropy_lower[:8].mean()))


def test_without_any_reasoning_the_draft_is_what_is_left(folder: Path) -> None:
    """The model calls straight away: no segment, and a draft that tells."""
    random = np.random.default_rng(1)

    async def work(store: Store) -> None:
        for number in range(200):
            right = random.random() < 0.6
            said = capture(6, seed=number, exact=True)
            level = np.full(6, 0.1 if right else 2.0, dtype=np.float32)
            said = replace(said, entropy_lower=level, entropy_upper=level)
            await add(store, f"t{number}", features(segment=None), right_alone=right, draft=said)

    out = folder / "calibrated.yaml"
    done = calibrate(folder, filled(folder, work), "--out", str(out))

    assert done.exit_code == 0, done.output
    written = load_policy(out)
    assert written.signal.statistic.is_draft
    assert written.signal.statistic is not Statistic.DRAFT_LOGPROB_SUM
    assert re.search(r"4\d\.\d%|5\d\.\d%|6\d\.\d%", done.output)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-loss", "0"), "0.0 is not in the range 0.0<x<1.0"),
        (("--delta", "1.5"), "1.5 is not in the range 0.0<x<1.0"),
        (("--max-loss", "nan"), "nan is not a finite number"),
        (("--signals", "entropy_min"), "no signal 'entropy_min'; known: all, draft"),
        (("--signals", "entropy_max,-all"), "no signal is left"),
        (("--draft-tokens", "100"), "100 is not in the range 1<=x<=64"),
    ],
)
def test_bad_options_are_told(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    url = filled(folder, add_one)
    done = CliRunner().invoke(command_line(), ["calibrate", "--store", url, *arguments])

    assert done.exit_code != 0
    assert told in done.output + str(done.exception)


async def add_one(store: Store) -> None:
    await add(store, "one", features(segment=segment(0.2)))


def test_a_policy_that_names_none_of_the_tools_is_refused(folder: Path) -> None:
    (folder / "mine.yaml").write_text(POLICY.replace("search:", "lookup:"), encoding="utf-8")

    done = calibrate(folder, filled(folder, add_one))

    assert done.exit_code == 3
    assert "left out: not_gated 1" in done.stderr


def test_the_output_cannot_be_written(folder: Path, full: str) -> None:
    out = str(folder / "missing" / "calibrated.yaml")

    base = ["calibrate", "--store", full, "--base-policy", str(folder / "mine.yaml")]
    done = CliRunner().invoke(command_line(), [*base, "--signals", "entropy_max", "--out", out])

    assert "cannot be written: No such file or directory" in str(done.exception)


_ONE = "WHERE turn_id IN (SELECT id FROM turns WHERE trajectory_id = 't1')"
DAMAGE = (
    f"UPDATE shadows SET entropy_lower = x'00' {_ONE}",
    f"UPDATE shadows SET n_kept = 'none' {_ONE}",
    f"UPDATE calls SET propensity = 'likely' {_ONE}",
    f"UPDATE calls SET features = printf('%.*c', 2000, '[') {_ONE}",
    "UPDATE feedback SET score = 'much' WHERE trajectory_id = 't1'",
    "UPDATE turns SET n_tokens = 'none' WHERE trajectory_id = 't1'",
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_a_damaged_trajectory_is_left_out_and_no_more(
    folder: Path, full: str, damage: str, command: str
) -> None:
    copy = folder / "copy.db"
    shutil.copy(full.removeprefix("sqlite:///"), copy)
    with sqlite3.connect(copy) as connection:
        connection.execute(damage)
    url = f"sqlite:///{copy}"
    if command == "calibrate":
        arguments = ["calibrate", "--store", url, "--base-policy", str(folder / "mine.yaml")]
        arguments += ["--out", str(folder / "new.yaml"), "--signals", "entropy_max"]
    else:
        arguments = ["policy", "evaluate", str(folder / "mine.yaml"), "--store", url]
    found = CliRunner().invoke(command_line(), arguments, catch_exceptions=False)
    assert found.exit_code in (0, 3), found.output
    assert "Traceback" not in found.output

"""Rewards of exported rows become advantages of tokens: worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from entrogate.label.rewards import RewardOptions
from entrogate.label.worth import Labelling
from entrogate.train.data import DataError, label_rows

NAN = float("nan")


def call(
    turn: int, start: int, reduced: bool | None, decision: str = "allow", delta: float | None = None
) -> dict[str, Any]:
    return {
        "parallel_group": turn,
        "start": start,
        "end": start + 1,
        "reduced": reduced,
        "delta_h": delta,
        "null_reason": None if reduced is not None else "short_segment",
        "decision": decision,
    }


def row(
    name: str,
    outcome: float | None,
    labels: Sequence[bool | None] = (),
    **changed: Any,
) -> dict[str, Any]:
    """A prompt of one token; per call two sampled tokens and one of its result; two to answer."""
    calls = [call(turn, 1 + 3 * turn + 1, label) for turn, label in enumerate(labels)]
    n = len(labels)
    mask = [0, *([1, 1, 0] * n), 1, 1]
    segments = [-1, *(s for turn in range(n) for s in (turn, turn, -1)), n, n]
    values: dict[str, Any] = {
        "schema_version": 1,
        "trajectory_id": name,
        "group_id": "g",
        "branch_index": 0,
        "model_id": "m",
        "tokenizer_hash": "",
        "weight_version": "",
        "input_ids": np.arange(len(mask), dtype=np.int32),
        "loss_mask": np.array(mask, dtype=np.int8),
        "old_logprobs": np.where(mask, -1.0, 0.0).astype(np.float32),
        "temperature": 0.8,
        "logprobs_mode": "sampled",
        "segment_id": np.array(segments, dtype=np.int16),
        "calls": calls,
        "outcome": outcome,
        "truncated": False,
        "complete": True,
    }
    return values | changed


def advantages(rows: list[dict[str, Any]], **labelling: Any) -> list[list[float]]:
    sequences, _ = label_rows(rows, Labelling(**labelling))
    return [[round(float(a), 6) for a in s.advantages[s.mask]] for s in sequences]


def test_outcome() -> None:
    rows = [row("a", 1.0, [True]), row("b", 0.0), row("c", 0.5)]
    found = advantages(rows, reward="outcome", baseline="mean")
    assert found == [[0.5] * 4, [-0.5] * 2, [0.0] * 2]


def test_sparse() -> None:
    # a: 1 · 1/2, b: 1 (no calls), c: 0
    rows = [row("a", 1.0, [True, False]), row("b", 1.0), row("c", 0.0, [True])]
    assert advantages(rows, reward="sparse", baseline="mean") == [
        [0.0] * 6,
        [0.5] * 2,
        [-0.5] * 4,
    ]
    options = RewardOptions(no_calls="null")  # then b leaves the group
    found = advantages(rows, reward="sparse", baseline="mean", options=options)
    assert found == [[0.25] * 6, [0.0] * 2, [-0.25] * 4]


def test_a_small_reduction_counts_for_nothing_where_one_is_asked_for() -> None:
    # of a's calls one lowers the entropy by 0.3 nats and one by 0.05: 2/2 or, from 0.1 on, 1/2
    a, b = row("a", 1.0, [True, True]), row("b", 0.0, [None])
    a["calls"][0]["delta_h"], a["calls"][1]["delta_h"] = -0.3, -0.05
    for min_reduction, reward in ((0.0, 1.0), (0.05, 1.0), (0.1, 0.5)):
        options = RewardOptions(min_reduction=min_reduction, all_unknown="outcome")
        found = advantages([a, b], reward="sparse", baseline="leave_one_out", options=options)
        assert found == [[reward] * 6, [-reward] * 4]


def test_otc() -> None:
    # the fewest calls of a right answer: 1; with 3: f = 2·1·3/4, sin(3π/4)
    rows = [row("a", 1.0, [True]), row("b", 1.0, [True] * 3)]
    found = advantages(rows, reward="otc", baseline="mean")
    half = round((1 - np.sin(3 * np.pi / 4)) / 2, 6)
    assert found[0] == pytest.approx([half] * 4)
    assert found[1] == pytest.approx([-half] * 8)


def test_dense_as_in_the_paper_goes_to_the_tokens_before_the_call() -> None:
    # r: a = 1.5, 1.0; b = 1.0; c = 0. First calls: mean 5/6; second: alone, so the outcome's.
    rows = [row("a", 1.0, [True, False]), row("b", 1.0, [False]), row("c", 0.0, [True])]
    a, b, c = advantages(rows, reward="dense", baseline="mean", dense="paper")
    third = round(1 / 3, 6)  # of the outcomes: mean 2/3
    assert a == pytest.approx([round(1.5 - 2.5 / 3, 6)] * 2 + [third] * 4, abs=1e-5)
    assert b == pytest.approx([round(1 - 2.5 / 3, 6)] * 2 + [third] * 2, abs=1e-5)
    assert c == pytest.approx([round(-2.5 / 3, 6)] * 2 + [round(-2 / 3, 6)] * 2, abs=1e-5)


def test_dense_calibrated_keeps_the_sign_of_the_outcome() -> None:
    # bonus: a 0.5, b 0, c 0 → mean 1/6 → +1/3, -1/6, -1/6; outcomes: +1/3, +1/3, -2/3
    rows = [row("a", 1.0, [True]), row("b", 1.0, [False]), row("c", 0.0, [True])]
    a, b, c = advantages(rows, reward="dense", baseline="mean", dense="calibrated")
    assert a == pytest.approx([2 / 3] * 2 + [1 / 3] * 2, abs=1e-5)
    assert b == pytest.approx([1 / 6] * 2 + [1 / 3] * 2, abs=1e-5)
    assert c == pytest.approx([-5 / 6] * 2 + [-2 / 3] * 2, abs=1e-5)


def test_an_unknown_label_leaves_the_outcome() -> None:
    rows = [row("a", 1.0, [None]), row("b", 0.0, [True])]
    a, _ = advantages(rows, reward="dense", baseline="mean")
    assert a == [0.5] * 4


def test_suppressed_calls_are_no_calls() -> None:
    held = row("a", 1.0, [True])
    held["calls"][0]["decision"] = "suppress"
    found = advantages([held, row("b", 0.0)], reward="sparse", baseline="mean")
    assert found == [[0.5] * 4, [-0.5] * 2]


def test_what_teaches_nothing_is_left_out_and_counted() -> None:
    rows = [
        row("a", 1.0),
        row("b", 0.0),
        row("alone", 1.0, group_id="h"),
        row("c", 0.5, group_id="i"),
        row("d", 0.5, group_id="i"),
        row("e", None),
        row("f", 1.0, complete=False),
    ]
    sequences, report = label_rows(rows, Labelling(reward="outcome"))
    assert [s.trajectory_id for s in sequences] == ["a", "b"]
    assert report.skipped == {
        "group of one": 1,
        "group with equal rewards": 2,
        "no outcome": 1,
        "incomplete capture": 1,
    }
    assert (report.trajectories, report.groups) == (5, 3)
    with pytest.raises(DataError, match=r"nothing to train on.*2 × group with equal"):
        label_rows(rows[3:5], Labelling(reward="outcome"))


@pytest.mark.parametrize("first", [True, False])
def test_a_gap_in_one_row_takes_the_whole_trajectory_out(first: bool) -> None:
    branches = [row("a", 1.0, complete=first), row("a", 1.0, complete=not first, branch_index=1)]
    sequences, report = label_rows(
        [*branches, row("b", 0.0), row("c", 1.0)], Labelling(reward="outcome")
    )
    assert [s.trajectory_id for s in sequences] == ["b", "c"]
    assert report.skipped == {"incomplete capture": 1}


def test_bad_numbers() -> None:
    missing = row("a", 1.0)
    missing["old_logprobs"][-1] = NAN
    with pytest.raises(DataError, match=r"lacks behaviour log-probs.*rwsft"):
        label_rows([missing, row("b", 0.0)], Labelling(reward="outcome"))
    label_rows([missing, row("b", 0.0)], Labelling(reward="outcome"), needs_old_logprobs=False)
    with pytest.raises(DataError, match="not a number"):
        label_rows([row("a", NAN), row("b", 0.0), row("c", 1.0)], Labelling(reward="outcome"))
    with pytest.raises(DataError, match="differ in temperature"):
        label_rows([row("a", 1.0, temperature=None), row("b", 0.0)], Labelling(reward="outcome"))


def test_rewards_as_they_are() -> None:
    rows = [row("a", 1.0, [True]), row("b", 0.25)]
    found = advantages(rows, reward="dense", baseline=None)
    assert found == [[1.5, 1.5, 1.0, 1.0], [0.25] * 2]


def test_temperature_of_the_distribution_that_the_log_probs_are_of() -> None:
    rows = [row("a", 1.0), row("b", 0.0, logprobs_mode="raw")]
    sequences, _ = label_rows(rows, Labelling(reward="outcome"))
    assert [s.temperature for s in sequences] == [0.8, 1.0]

"""An exported dataset against numbers worked out again from its token ids and the model alone.

The second implementation is this file: plain numpy in float64 and the marker tokens of the chat
template. It uses nothing of what measured, segmented, labelled and rewarded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import pyarrow.parquet as pq
import torch

from entrogate.cli import run
from tests.integration.organism import Organism, exported

LEAST_TOKENS = 4  # of a segment with a label
ALPHA = 0.5


@dataclass
class Turn:
    """What the model sampled at one go: [start, stop) of the row."""

    start: int
    stop: int
    calls: int
    segment: list[int]  # positions of the tokens between the think markers


@dataclass
class Recomputed:
    """A row, worked out again."""

    turns: list[Turn]
    entropy: NDArray[np.float64]
    logprobs: NDArray[np.float64]

    def mean(self, turn: Turn) -> float:
        return math.fsum(self.entropy[turn.segment]) / len(turn.segment)

    def labels(self) -> list[bool | None]:
        """I_k of each turn that called."""
        found: list[bool | None] = []
        for turn, after in zip(self.turns, [*self.turns[1:], None], strict=True):
            if turn.calls and after is None:
                found.append(None)
            elif turn.calls and after is not None:
                short = min(len(turn.segment), len(after.segment)) < LEAST_TOKENS
                found.append(None if short else self.mean(after) < self.mean(turn))
        return found


def recompute(organism: Organism, row: dict[str, Any]) -> Recomputed:
    ids = row["input_ids"]
    with torch.inference_mode():
        logits = organism.model(torch.tensor([ids])).logits[0].numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    before = np.arange(len(ids)) - 1  # the position whose logits a token was drawn from
    return Recomputed(
        turns=turns_of(organism, ids),
        entropy=-(np.exp(logp) * logp).sum(axis=1)[before],
        logprobs=logp[before, ids],
    )


def turns_of(organism: Organism, ids: list[int]) -> list[Turn]:
    """After each "<|im_start|>assistant\\n" the model speaks, up to and with "<|im_end|>"."""
    opening = organism.ids("<|im_start|>assistant\n").tolist()
    end, call = organism.id("<|im_end|>"), organism.id("<tool_call>")
    think, thought = organism.id("<think>"), organism.id("</think>")
    found: list[Turn] = []
    at = 0
    while at < len(ids):
        if ids[at : at + len(opening)] != opening:
            at += 1
            continue
        start = at + len(opening)
        stop = start
        while stop < len(ids) and ids[stop] != end:
            stop += 1
        stop = min(stop + 1, len(ids))
        said = ids[start:stop]
        reasoning = said[: said.index(call)] if call in said else said
        first = reasoning.index(think) + 1 if think in reasoning else 0
        last = reasoning.index(thought) if thought in reasoning else len(reasoning)
        assert think in said, "a turn of this model begins by thinking"
        segment = list(range(start + first, start + last))
        found.append(Turn(start=start, stop=stop, calls=said.count(call), segment=segment))
        at = stop
    return found


@pytest.fixture(scope="module")
def organism() -> Organism:
    torch.set_num_threads(1)
    return Organism()


@pytest.fixture(scope="module")
def data(organism: Organism, tmp_path_factory: pytest.TempPathFactory) -> str:
    return exported(organism, tmp_path_factory.mktemp("played"), tasks=3, runs=3)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def rows_of(folder: str) -> list[dict[str, Any]]:
    parts = sorted(Path(folder).glob("date=*/*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def test_everything_in_the_export_follows_from_ids_and_model(organism: Organism, data: str) -> None:
    rows = rows_of(data)
    known: list[bool | None] = []
    for row in rows:
        again = recompute(organism, row)
        check_tokens(row, again)
        check_calls(row, again)
        check_rewards(row, again.labels())
        known += again.labels()
    assert len(rows) == 9
    assert known.count(True) >= 3, "the test has something to look at"
    assert known.count(False) >= 3
    assert max(len(turns_of(organism, row["input_ids"])) for row in rows) >= 3


def check_tokens(row: dict[str, Any], again: Recomputed) -> None:
    sampled = np.zeros(len(row["input_ids"]), dtype=bool)
    numbers = np.full(len(sampled), -1)
    for number, turn in enumerate(again.turns):
        sampled[turn.start : turn.stop] = True
        numbers[turn.start : turn.stop] = number
    assert row["loss_mask"] == sampled.astype(int).tolist()
    assert row["segment_id"] == numbers.tolist()
    labels = np.where(sampled, row["input_ids"], -100)
    assert row["labels"] == labels.tolist()
    entropy, logprobs = np.array(row["entropy"]), np.array(row["old_logprobs"])
    assert np.array_equal(np.isfinite(entropy), sampled)
    close(entropy[sampled], again.entropy[sampled])
    close(logprobs[sampled], again.logprobs[sampled])
    kinds = np.array(row["token_kind"])
    for turn in again.turns:
        assert set(kinds[turn.segment].tolist()) <= {0}, "reasoning"
        assert (kinds[turn.start : turn.stop] == 0).sum() == len(turn.segment)
    assert (row["entropy_kind"], row["logprobs_mode"]) == ("exact", "sampled")


def check_calls(row: dict[str, Any], again: Recomputed) -> None:
    assert len(row["calls"]) == sum(turn.calls for turn in again.turns)
    calls = iter(row["calls"])
    for number, turn in enumerate(again.turns):
        after = again.turns[number + 1] if number + 1 < len(again.turns) else None
        for _ in range(turn.calls):
            call = next(calls)
            assert turn.start <= call["start"] < call["end"] <= turn.stop
            if after is None:
                assert (call["reduced"], call["null_reason"]) == (None, "no_later_turn")
                continue
            before_mean, after_mean = again.mean(turn), again.mean(after)
            close([call["h_before"], call["h_after"]], [before_mean, after_mean])
            if min(len(turn.segment), len(after.segment)) < LEAST_TOKENS:
                assert (call["reduced"], call["null_reason"]) == (None, "short_segment")
                continue
            delta = after_mean - before_mean
            close(call["delta_h"], delta)
            close(call["delta_h_norm"], delta / (before_mean + 1e-8))
            assert call["reduced"] == (delta < 0)


def check_rewards(row: dict[str, Any], labels: list[bool | None]) -> None:
    sparse, dense = rewards(row["outcome"], labels)
    assert row["n_calls"] == len(labels)
    assert row["n_reducing"] == labels.count(True)
    assert row["n_null"] == labels.count(None)
    close(as_floats([row["reward_sparse"]]), as_floats([sparse]))
    turns = sorted({call["parallel_group"] for call in row["calls"]})
    expected = [dense[turns.index(call["parallel_group"])] for call in row["calls"]]
    close(as_floats(row["reward_dense"]), as_floats(expected))


def rewards(outcome: float, labels: list[bool | None]) -> tuple[float | None, list[float | None]]:
    """Sparse, outcome · m/n (without calls: the outcome), and dense, outcome · (1 + α I_k)."""
    known = [label for label in labels if label is not None]
    sparse = outcome if not labels else None
    if known:
        sparse = outcome * known.count(True) / len(known)
    dense = [None if label is None else outcome * (1 + ALPHA * label) for label in labels]
    return sparse, dense


def as_floats(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values])


def test_labelled_advantages_follow_from_ids_and_model(
    organism: Organism, data: str, tmp_path: Path
) -> None:
    """The paper's dense reward: call k over the mean of call k of the group, in its std."""
    out = str(tmp_path / "labelled")
    said = ["--reward", "dense", "--dense", "paper", "--baseline", "std"]
    assert run(["label", data, "--to", out, *said]) == 0
    rows, worked_out = rows_of(out), 0
    for group in sorted({row["group_id"] for row in rows}):
        own = [row for row in rows if row["group_id"] == group]
        again = [recompute(organism, row) for row in own]
        outcomes = over_group([row["outcome"] for row in own])
        of_calls = [rewards(r["outcome"], a.labels())[1] for r, a in zip(own, again, strict=True)]
        expected = [np.zeros(len(row["input_ids"])) for row in own]
        for i, worked in enumerate(again):
            calling = [turn for turn in worked.turns if turn.calls]
            for turn in worked.turns:
                advantage = None
                if turn in calling:
                    k = calling.index(turn)
                    column = [calls[k] if k < len(calls) else None for calls in of_calls]
                    advantage = over_group(column)[i]
                if advantage is None:
                    advantage = outcomes[i] or 0.0
                expected[i][turn.start : turn.stop] = advantage
        for row, tokens in zip(own, expected, strict=True):
            check_rewards(row, recompute(organism, row).labels())
            if any(np.any(e) for e in expected):
                close(row["advantages"], tokens)
                worked_out += 1
            else:
                assert row["advantages"] is None
    assert worked_out >= 6


def over_group(values: list[Any]) -> list[float | None]:
    """(r - mean) / (population std + 1e-6) of what is known; None where that says nothing."""
    known = np.array([value for value in values if value is not None])
    if len(known) < 2 or np.ptp(known) < 1e-9:
        return [None] * len(values)
    scale = known.std() + 1e-6
    return [None if value is None else (value - known.mean()) / scale for value in values]

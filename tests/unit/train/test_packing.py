"""Packs hold every sequence once, and what a pack says of its tokens is what the sequences say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("pyarrow")

from entrogate.train.data import TrainingSequence
from entrogate.train.packing import make_pack, plan_epoch


def sequence(length: int, seed: int = 0, *, temperature: float = 1.0) -> TrainingSequence:
    rng = np.random.default_rng((seed, length))
    mask = rng.random(length) < 0.5
    return TrainingSequence(
        trajectory_id=f"t{seed}",
        input_ids=rng.integers(0, 50, length).astype(np.int32),
        mask=mask,
        advantages=rng.normal(size=length).astype(np.float32),
        old_logprobs=-rng.random(length).astype(np.float32),
        temperature=temperature,
        successful=bool(seed % 2),
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 5), st.integers(0, 3))
def test_every_sequence_is_in_one_pack(lengths: list[int], seed: int, epoch: int) -> None:
    sequences = [sequence(length, number) for number, length in enumerate(lengths)]
    packs = plan_epoch(sequences, seed=seed, epoch=epoch, pack_tokens=50)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(len(pack) == 1 or sum(lengths[i] for i in pack) <= 50 for pack in packs)
    assert packs == plan_epoch(sequences, seed=seed, epoch=epoch, pack_tokens=50)


def test_epochs_differ() -> None:
    sequences = [sequence(10, number) for number in range(20)]
    first, second = (plan_epoch(sequences, seed=0, epoch=e, pack_tokens=30) for e in (0, 1))
    assert first != second


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_pack_by_brute_force(lengths: list[int]) -> None:
    parts = [sequence(n, i, temperature=0.5 + i) for i, n in enumerate(lengths)]
    pack = make_pack(parts)
    ids = [int(t) for part in parts for t in part.input_ids]
    assert pack.input_1P[0].tolist() == ids
    assert pack.position_1P[0].tolist() == [p for n in lengths for p in range(n)]
    place = 0
    expected = []
    for number, part in enumerate(parts):
        for position in range(len(part.input_ids)):
            if position and part.mask[position]:
                expected.append(
                    (
                        place - 1,
                        int(part.input_ids[position]),
                        float(part.advantages[position]),
                        float(part.old_logprobs[position]),
                        part.temperature,
                        float(part.successful),
                        number,
                    )
                )
            place += 1
    columns = (
        pack.predicting_T, pack.token_T, pack.advantage_T, pack.old_logprob_T, pack.temperature_T,
        pack.successful_T, pack.sequence_T,
    )  # fmt: skip
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected

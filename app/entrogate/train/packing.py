# ruff: noqa: N815 (shape suffixes)
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""Sequences packed into one row of tokens, and the steps that an epoch consists of.

Both are functions of the sequences, the settings and the seed alone: every process of a run works
out the same plan, and a run that is resumed goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entrogate.train.data import TrainingSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """P tokens in a row, of one or more sequences; T of them are trained on.

    ``position_1P`` starts anew with each sequence and attention does not cross (``lengths``).
    ``predicting_T`` are the places whose logits predict the trained tokens.
    """

    lengths: tuple[int, ...]
    input_1P: Tensor
    position_1P: Tensor
    predicting_T: Tensor
    token_T: Tensor
    advantage_T: Tensor
    old_logprob_T: Tensor
    temperature_T: Tensor
    successful_T: Tensor
    sequence_T: Tensor


def plan_epoch(
    sequences: Sequence[TrainingSequence], *, seed: int, epoch: int, pack_tokens: int
) -> list[list[int]]:
    """Which sequences (by index) go together; each pack holds ``pack_tokens`` or one sequence."""
    order = np.random.default_rng((seed, epoch)).permutation(len(sequences))
    packs: list[list[int]] = []
    room = 0
    for index in order.tolist():
        length = len(sequences[index].input_ids)
        if length > room or not packs:
            packs.append([])
            room = pack_tokens
        packs[-1].append(index)
        room -= length
    return packs


def make_pack(sequences: Sequence[TrainingSequence]) -> Pack:
    """One pack of the given sequences. A token at position 0 has nothing to predict it."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    places = [np.flatnonzero(sequence.mask[1:]) for sequence in sequences]

    def at_trained(name: str) -> np.ndarray:
        return np.concatenate(
            [getattr(s, name)[at + 1] for s, at in zip(sequences, places, strict=True)]
        )

    def repeated(name: str) -> np.ndarray:
        return np.repeat([getattr(s, name) for s in sequences], [len(at) for at in places])

    predicting = [start + at for start, at in zip(starts, places, strict=True)]
    counts = [len(at) for at in places]
    return Pack(
        lengths=tuple(lengths),
        input_1P=torch.from_numpy(np.concatenate([s.input_ids for s in sequences])).long()[None],
        position_1P=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        predicting_T=torch.from_numpy(np.concatenate(predicting)),
        token_T=torch.from_numpy(at_trained("input_ids")).long(),
        advantage_T=torch.from_numpy(at_trained("advantages")),
        old_logprob_T=torch.from_numpy(at_trained("old_logprobs")),
        temperature_T=torch.from_numpy(repeated("temperature")).float(),
        successful_T=torch.from_numpy(repeated("successful")).float(),
        sequence_T=torch.from_numpy(np.repeat(np.arange(len(sequences)), counts)),
    )

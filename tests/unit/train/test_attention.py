"""Packed attention against softmax(QK/√d)V with a mask, written out in float64."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from entrogate.train.attention import packed_attention

HEADS, KEY_HEADS, SIZE = 4, 2, 8


def by_hand(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], window: int | None
) -> torch.Tensor:
    total = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.arange(total)
    back = at[:, None] - at[None, :]
    seen = (back >= 0) & (sequence[:, None] == sequence[None, :])
    if window is not None:
        seen &= back < window
    k, v = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in (k, v))
    scores = q.double() @ k.double().transpose(-1, -2) / SIZE**0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v.double()).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3])
def test_each_sequence_attends_to_itself(window: int | None) -> None:
    lengths = [5, 1, 9, 2]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, sum(lengths), SIZE, generator=generator)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    found, _ = packed_attention(
        module,
        q,
        k,
        v,
        None,
        sequence_lengths=lengths,
        sliding_window=window,
        scaling=SIZE**-0.5,
        dropout=0.0,
    )
    expected = by_hand(q, k, v, lengths, window)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_capped_scores_are_refused() -> None:
    zero = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="caps"):
        packed_attention(None, zero, zero, zero, None, sequence_lengths=[1], softcap=50.0)

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false
"""Attention over packed sequences: each attends to itself alone, and nothing is computed between.

The row-wide mask that transformers would build costs the square of the pack; here the cost is the
sum of the squares of the sequences, on a CPU and on a GPU, without another library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PACKED = "entrogate_packed"


def register() -> None:
    """Make ``attn_implementation=PACKED`` known to transformers. Safe to call twice."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sequence_lengths: Sequence[int],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row; shapes (1, heads, P, head size).

    ``sequence_lengths`` add up to P and are given to the model's forward. Raises ValueError for
    what PyTorch's attention cannot do (``softcap``).
    """
    from transformers.integrations import sdpa_attention

    attend: Any = sdpa_attention.sdpa_attention_forward
    del attention_mask  # there is none: see `sequence_lengths`
    if softcap is not None:
        raise ValueError("this model caps its attention scores, which packed training cannot do")
    parts: list[Tensor] = []
    start = 0
    for length in sequence_lengths:
        end = start + length
        band = None
        if sliding_window is not None and length > sliding_window:
            band = _band(length, sliding_window, query.device)
        own = (t[:, :, start:end] for t in (query, key, value))
        parts.append(attend(module, *own, band, **others)[0])
        start = end
    return torch.cat(parts, dim=1), None


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """True where token i sees token j: j is one of the ``window`` tokens up to i."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return ((back >= 0) & (back < window))[None, None]

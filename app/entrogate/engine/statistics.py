# ruff: noqa: N803, N806, N815 (shape suffixes)
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Exact statistics of the distributions of one decoding step, in torch.

Shapes: B rows (requests), V the vocabulary. Entropy is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOOR = -1e4  # below it exp is 0 in float32; keeps 0 * -inf out of the sum


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatistics:
    """Parallel to the rows, float32; ``largest_B`` is the id of the likeliest token."""

    entropy_B: Tensor
    margin_B: Tensor
    p_tool_call_B: Tensor
    largest_B: Tensor


def row_statistics(logits_BV: Tensor, tool_call_id: int | None) -> RowStatistics:
    r"""Entropy, top-1/top-2 margin and probability of the tool-call token of each row.

    With d_v = x_v - max x, e_v = exp(d_v) and r the sum of all e_v but the largest (which is 1),
    H = ln(1 + r) + Σ e_v (-d_v) / (1 + r): every term is positive, so a peaked distribution keeps
    its relative precision. ``-inf`` marks an impossible token. ``tool_call_id`` None gives nan.
    """
    top_B2, indices_B2 = torch.topk(logits_BV, 2, dim=-1)
    below_BV = (logits_BV - top_B2[:, :1]).clamp_(min=_FLOOR)
    weights_BV = below_BV.exp()
    weights_BV.scatter_(1, indices_B2[:, :1], 0.0)
    rest_B = weights_BV.sum(dim=-1)
    total_B = rest_B + 1.0
    spread_B = torch.linalg.vecdot(weights_BV, below_BV)
    if tool_call_id is None:
        p_tool_call_B = torch.full_like(rest_B, torch.nan)
    else:
        is_largest_B = (indices_B2[:, 0] == tool_call_id).to(rest_B.dtype)
        p_tool_call_B = (weights_BV[:, tool_call_id] + is_largest_B) / total_B
    return RowStatistics(
        entropy_B=torch.log1p(rest_B) - spread_B / total_B,
        margin_B=top_B2[:, 0] - top_B2[:, 1],
        p_tool_call_B=p_tool_call_B,
        largest_B=indices_B2[:, 0],
    )


def sampled_logprobs(processed_BV: Tensor, token_ids_B: Tensor) -> Tensor:
    """Log-probs of the sampled tokens under the distribution that was sampled from.

    ``processed_BV`` are the logits after temperature and top-k/top-p.
    """
    chosen_B = processed_BV.gather(1, token_ids_B[:, None])[:, 0]
    return chosen_B - torch.logsumexp(processed_BV, dim=-1)

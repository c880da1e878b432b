# ruff: noqa: N803, N806, N815 (shape suffixes)
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Exact statistics of the distributions of one decoding step, in torch.

Shapes: B rows (requests), V the vocabulary. Entropy is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLOOR = -1e4  # below it exp is 0 in float32; keeps 0 * -inf out of the sum
COULD_BE_SAMPLED = 1e-3  # probability; a call less likely is left to the gate in the gateway
GREEDY = 1e-5  # vLLM takes the likeliest token below this temperature
SMALL = 2**18  # logits; below, the overhead of torch's operators is most of their time


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatistics:
    """Parallel to the rows, float32; ``largest_B`` is the id of the likeliest token."""

    entropy_B: Tensor
    margin_B: Tensor
    p_tool_call_B: Tensor
    largest_B: Tensor


def row_statistics(logits_BV: Tensor, tool_call_ids_B: Tensor) -> RowStatistics:
    r"""Entropy, top-1/top-2 margin and probability of the tool-call token of each row.

    With d_v = x_v - max x, e_v = exp(d_v) and r the sum of all e_v but the largest (which is 1),
    H = ln(1 + r) + Σ e_v (-d_v) / (1 + r): every term is positive, so a peaked distribution keeps
    its relative precision. ``-inf`` marks an impossible token. ``tool_call_ids_B`` are int64; a row
    without such a token has -1 and gets nan.
    """
    top_B2, indices_B2 = torch.topk(logits_BV, 2, dim=-1)
    below_BV = (logits_BV - top_B2[:, :1]).clamp_(min=_FLOOR)
    weights_BV = below_BV.exp()
    weights_BV.scatter_(1, indices_B2[:, :1], 0.0)
    rest_B = weights_BV.sum(dim=-1)
    total_B = rest_B + 1.0
    spread_B = torch.linalg.vecdot(weights_BV, below_BV)
    call_B = weights_BV.gather(1, tool_call_ids_B.clamp(min=0)[:, None])[:, 0]
    is_largest_B = (indices_B2[:, 0] == tool_call_ids_B).to(rest_B.dtype)
    p_tool_call_B = (call_B + is_largest_B) / total_B
    return RowStatistics(
        entropy_B=torch.log1p(rest_B) - spread_B / total_B,
        margin_B=top_B2[:, 0] - top_B2[:, 1],
        p_tool_call_B=p_tool_call_B.masked_fill_(tool_call_ids_B < 0, torch.nan),
        largest_B=indices_B2[:, 0],
    )


def small_row_statistics(
    logits_BV: NDArray[np.float32], tool_call_ids_B: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`row_statistics` in numpy, for few logits on a CPU: (3, B) measured and the likeliest ids."""
    rows = np.arange(len(logits_BV))
    largest_B = logits_BV.argmax(axis=1)
    top_B = logits_BV[rows, largest_B]
    below_BV = logits_BV - top_B[:, None]
    np.maximum(below_BV, _FLOOR, out=below_BV)
    weights_BV = np.exp(below_BV)
    weights_BV[rows, largest_B] = 0.0
    rest_B = weights_BV.sum(axis=1)
    total_B = rest_B + 1.0
    measured = np.empty((3, len(logits_BV)), dtype=np.float32)
    spread_B = np.einsum("bv,bv->b", weights_BV, below_BV)
    measured[0] = np.log1p(rest_B) - spread_B / total_B
    below_BV[rows, largest_B] = -np.inf
    measured[1] = -below_BV.max(axis=1)
    measured[1][measured[1] >= -_FLOOR] = np.inf  # the others are impossible
    call_B = weights_BV[rows, np.maximum(tool_call_ids_B, 0)]
    measured[2] = (call_B + (largest_B == tool_call_ids_B)) / total_B
    measured[2][tool_call_ids_B < 0] = np.nan
    return measured, largest_B


def small_sampled_logprobs(
    processed_BV: NDArray[np.float32], token_ids: list[int]
) -> NDArray[np.float32]:
    """`sampled_logprobs` in numpy, for few logits on a CPU."""
    chosen_B = processed_BV[np.arange(len(token_ids)), token_ids]
    top_B = processed_BV.max(axis=1)
    return chosen_B - top_B - np.log(np.exp(processed_BV - top_B[:, None]).sum(axis=1))


def masked_probabilities(
    call_logits_B: Tensor, temperatures_B: Tensor, processed_BV: Tensor
) -> Tensor:
    """With which probability a token would have been sampled that a gate masked, row by row.

    ``call_logits_B`` are its logits before that, ``temperatures_B`` those of the requests (0:
    greedy), ``processed_BV`` the logits of the others after temperature and top-k/top-p. Where the
    tail was cut off, a token that is less likely than all that was kept is taken for cut off, too;
    that the masked one may have pushed the last of the others out is left aside.
    """
    greedy_B = temperatures_B < GREEDY
    scaled_B = call_logits_B / temperatures_B.masked_fill(greedy_B, 1.0)
    kept_BV = ~torch.isneginf(processed_BV)
    least_B = processed_BV.masked_fill(~kept_BV, torch.inf).amin(dim=-1)
    others_B = torch.logsumexp(processed_BV, dim=-1)
    sampled_B = torch.sigmoid(scaled_B - others_B).masked_fill_(scaled_B < least_B, 0.0)
    largest_B = processed_BV.amax(dim=-1)
    return torch.where(greedy_B, (call_logits_B > largest_B).to(sampled_B.dtype), sampled_B)


def sampled_logprobs(processed_BV: Tensor, token_ids_B: Tensor) -> Tensor:
    """Log-probs of the sampled tokens under the distribution that was sampled from.

    ``processed_BV`` are the logits after temperature and top-k/top-p.
    """
    chosen_B = processed_BV.gather(1, token_ids_B[:, None])[:, 0]
    return chosen_B - torch.logsumexp(processed_BV, dim=-1)

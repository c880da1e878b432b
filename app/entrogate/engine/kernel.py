# pyright: basic
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# ruff: noqa: N803, PLR0917 (Triton's own spelling; kernels take their arguments by position)
"""`statistics.row_statistics` as one Triton kernel: every logit is read once.

A row is cut into blocks. Of each block, and of all blocks so far, are kept: the largest logit m and
its index, the second largest, r = Σ e^(x - m) over all but the largest, s = Σ e^(x - m) (x - m).
Two such parts with m1 >= m2, d = m2 - m1 and f = e^d make one:

    r = r1 + f (r2 + 1)        s = s1 + f (s2 + d (r2 + 1))

All terms of r are positive and all of s negative, so nothing cancels, and H = ln(1 + r) - s / (1 +
r) keeps its relative precision for a peaked row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from entrogate.engine.measure import RowStatistics

BLOCK = 4096
_WARPS = 8


def fused_row_statistics(logits_BV: Tensor, tool_call_ids_B: Tensor) -> RowStatistics:
    """As `statistics.row_statistics`, for logits whose rows are contiguous; any float dtype."""
    if logits_BV.ndim != 2 or logits_BV.stride(1) != 1:
        raise ValueError(f"want contiguous rows, have strides {logits_BV.stride()}")
    n_rows, vocabulary = logits_BV.shape
    out = torch.empty((3, n_rows), dtype=torch.float32, device=logits_BV.device)
    largest = torch.empty(n_rows, dtype=torch.int64, device=logits_BV.device)
    if n_rows:
        _rows[(n_rows,)](
            logits_BV,
            out,
            largest,
            n_rows,
            vocabulary,
            logits_BV.stride(0),
            tool_call_ids_B.contiguous(),
            BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=_WARPS,
        )
    return RowStatistics(entropy_B=out[0], margin_B=out[1], p_tool_call_B=out[2], largest_B=largest)


@triton.jit
def _rows(
    logits_ptr, out_ptr, largest_ptr, n_rows, vocabulary, row_stride, calls_ptr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    start_ptr = logits_ptr + row.to(tl.int64) * row_stride
    lanes = tl.arange(0, BLOCK)
    top = -float("inf")
    second = -float("inf")
    index = 0
    rest = 0.0
    spread = 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + lanes
        x = tl.load(start_ptr + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
        block_top = tl.max(x, axis=0)
        block_lane = tl.argmax(x, axis=0)
        is_top = lanes == block_lane
        anchor = tl.where(block_top == -float("inf"), 0.0, block_top)
        below = tl.maximum(x - anchor, -1e4)
        weights = tl.where(is_top, 0.0, tl.exp(below))
        block_second = tl.max(tl.where(is_top, -float("inf"), x), axis=0)
        block_rest = tl.sum(weights, axis=0)
        block_spread = tl.sum(weights * below, axis=0)

        ahead = block_top > top
        m1 = tl.where(ahead, block_top, top)
        m2 = tl.where(ahead, top, block_top)
        r1 = tl.where(ahead, block_rest, rest)
        r2 = tl.where(ahead, rest, block_rest)
        s1 = tl.where(ahead, block_spread, spread)
        s2 = tl.where(ahead, spread, block_spread)
        gone = m2 == -float("inf")
        d = tl.where(gone, 0.0, m2 - m1)
        factor = tl.where(gone, 0.0, tl.exp(d))
        rest = r1 + factor * (r2 + 1.0)
        spread = s1 + factor * (s2 + d * (r2 + 1.0))
        second = tl.maximum(tl.maximum(second, block_second), m2)
        index = tl.where(ahead, start + block_lane, index)
        top = m1
    total = 1.0 + rest
    # ln(1 + r) without losing a small r: Kahan's quotient.
    kahan = tl.where(total == 1.0, rest, tl.log(total) * rest / (total - 1.0 + (total == 1.0)))
    tl.store(out_ptr + row, kahan - spread / total)
    tl.store(out_ptr + n_rows + row, top - second)
    call_id = tl.load(calls_ptr + row)
    known = (call_id >= 0) & (call_id < vocabulary)
    call = tl.load(start_ptr + call_id, mask=known, other=-float("inf")).to(tl.float32)
    probability = tl.where(known, tl.exp(call - top) / total, float("nan"))
    tl.store(out_ptr + 2 * n_rows + row, probability)
    tl.store(largest_ptr + row, index.to(tl.int64))

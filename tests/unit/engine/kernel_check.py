"""Compares the kernel with torch in float64 on a device: python kernel_check.py cpu|cuda.

On the CPU it needs TRITON_INTERPRET=1.
"""

import sys

import torch

from entrogate.engine.kernel import fused_row_statistics


def reference(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = logits.double()
    top, index = torch.topk(x, 2, dim=-1)
    below = (x - top[:, :1]).clamp(min=-1e4)
    weights = below.exp().scatter(1, index[:, :1], 0.0)
    rest = weights.sum(-1)
    entropy = torch.log1p(rest) - (weights * below).sum(-1) / (1 + rest)
    return entropy, top[:, 0] - top[:, 1], x.softmax(-1)


def cases(device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found: list[torch.Tensor] = []
    for vocabulary in (3, 1_000, 1_856, 4_096, 32_000, 151_936, 262_144):
        scales = torch.tensor([[0.01], [1.0], [8.0], [40.0]])
        rows = torch.randn(4, vocabulary, generator=generator) * scales
        peaked = rows.clone()
        peaked[:, vocabulary // 2] += torch.tensor([5.0, 15.0, 40.0, 100.0])
        masked = rows.clone()
        masked[torch.rand(rows.shape, generator=generator) < 0.9] = -torch.inf
        masked[:, :2] = torch.randn(4, 2, generator=generator)
        alone = torch.full((1, vocabulary), -torch.inf)
        alone[0, vocabulary - 1] = 3.0
        found += [rows, peaked, masked, alone, rows.bfloat16(), torch.ones(2, vocabulary)]
    return [case.to(device) for case in found]


def main() -> None:
    checked = 0
    for logits in cases(sys.argv[1]):
        calls = torch.arange(len(logits), device=logits.device) % logits.shape[1]
        calls[-1] = -1
        entropy, margin, p = reference(logits)
        found = fused_row_statistics(logits, calls)
        torch.testing.assert_close(found.entropy_B.double(), entropy, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(found.margin_B.double(), margin, rtol=1e-5, atol=1e-6)
        likely = found.p_tool_call_B.double()
        expected = p.gather(1, calls.clamp(min=0)[:, None])[:, 0]
        expected[-1] = torch.nan
        torch.testing.assert_close(likely, expected, rtol=2e-5, atol=1e-30, equal_nan=True)
        largest = logits.gather(1, found.largest_B[:, None])[:, 0]
        torch.testing.assert_close(largest, logits.max(dim=1).values, rtol=0, atol=0)
        checked += len(logits)
    print(f"{checked} rows agree")


main()

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""Muon for the weight matrices, AdamW for embeddings and norms, one learning-rate schedule.

Muon (Jordan et al., 2024) orthogonalises each matrix's momentum by Newton-Schulz iterations.
torch's own version iterates in bfloat16, slow on CPUs without it; this one stays in float32.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Optimiser:
    """Both optimisers over one network. Rates are peaks; `step` takes a factor in [0, 1]."""

    def __init__(self, network: nn.Module, *, matrix_rate: float, other_rate: float) -> None:
        named = list(network.named_parameters())
        self._matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
        others = [p for name, p in named if p.dim() != 2 or "embed" in name]
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._matrix_rate, self._other_rate = matrix_rate, other_rate
        self._adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, factor: float, *, momentum: float = 0.95, decay: float = 0.02) -> None:
        """Apply the gradients and clear them."""
        rate = self._matrix_rate * factor
        for parameter, velocity in zip(self._matrices, self._momenta, strict=True):
            gradient = parameter.grad
            assert gradient is not None
            velocity.lerp_(gradient, 1 - momentum)
            direction = orthogonalise(gradient.lerp(velocity, momentum))
            scale = math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1]))
            parameter.mul_(1 - rate * decay).add_(direction, alpha=-rate * scale)
            parameter.grad = None
        for group in self._adam.param_groups:
            group["lr"] = self._other_rate * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on."""
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for velocity, saved in zip(self._momenta, state["momenta"], strict=True):
            velocity.copy_(saved)
        self._adam.load_state_dict(state["adam"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Roughly U V^T of the matrix's singular value decomposition U S V^T."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def rate_factor(progress: float, *, warm_up: float = 0.02, floor: float = 0.02) -> float:
    """Linear warm-up, a plateau for the first 45 %, then a cosine down to `floor`."""
    if progress < warm_up:
        return progress / warm_up
    if progress < 0.45:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - 0.45) / 0.55))

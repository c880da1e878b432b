# ruff: noqa: N803, N806, N815 (shape suffixes)
"""The losses, as functions of log-probs. Shapes: T tokens of a batch, packed, masked ones left out.

Every loss is a sum over tokens; the trainer divides it by the number of trained tokens of the whole
batch, over all processes: a constant for the batch, so that no sequence weighs more for being short
(Dr. GRPO, arXiv 2503.20783).

| name | per token, with ρ = exp(logprob - old_logprob) and advantage A |
|---|---|
| topr | -A·logprob where A >= 0, else -sg(min(ρ, 1))·A·logprob (arXiv 2503.14286) |
| grpo | -min(ρ·A, clip(ρ, 1 - ε, 1 + ε)·A) (the paper's) |
| cispo | -sg(min(ρ, cap))·A·logprob (truncated importance sampling) |
| rwsft | -A·logprob with A the reward itself, >= 0 (arXiv 2506.06964) |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entrogate.train.settings import LossName


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """``clip`` is grpo's ε, ``cap`` the largest weight of cispo.

    ``ratio``: what ρ is, in topr, of one token or of its whole sequence (as in the paper, where it
    soon is 0 for long sequences).
    """

    clip: float = 0.2
    cap: float = 2.0
    ratio: Literal["token", "sequence"] = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossBatch:
    """Trained tokens; ``sequence_T`` numbers the sequence that each belongs to, from 0."""

    logprob_T: Tensor
    old_logprob_T: Tensor
    advantage_T: Tensor
    sequence_T: Tensor


def topr(batch: LossBatch, options: LossOptions) -> Tensor:
    """TOPR (arXiv 2503.14286): where the advantage is negative, weighted by π/π_old cut at 1.

    The ratio is a token's or, with ``ratio: sequence``, that of its sequence. Returns the sum over
    tokens.
    """
    log_ratio_T = (batch.logprob_T - batch.old_logprob_T).detach()
    if options.ratio == "sequence":
        count = int(batch.sequence_T.max()) + 1 if len(log_ratio_T) else 0
        totals = log_ratio_T.new_zeros(count).index_add_(0, batch.sequence_T, log_ratio_T)
        log_ratio_T = totals[batch.sequence_T]
    truncated_T = log_ratio_T.clamp(max=0.0).exp()
    weight_T = torch.where(batch.advantage_T >= 0, torch.ones_like(truncated_T), truncated_T)
    return -(weight_T * batch.advantage_T * batch.logprob_T).sum()


def grpo(batch: LossBatch, options: LossOptions) -> Tensor:
    """GRPO (arXiv 2402.03300): PPO's clipped ratio, within 1 ± ``clip``. The sum over tokens."""
    ratio_T = (batch.logprob_T - batch.old_logprob_T).exp()
    clipped_T = ratio_T.clamp(1 - options.clip, 1 + options.clip)
    return -torch.minimum(ratio_T * batch.advantage_T, clipped_T * batch.advantage_T).sum()


def cispo(batch: LossBatch, options: LossOptions) -> Tensor:
    """CISPO (arXiv 2506.13585): the ratio, at most ``cap``, weights the log-prob's gradient.

    Returns the sum over tokens; no gradient flows through the weight.
    """
    weight_T = (batch.logprob_T - batch.old_logprob_T).detach().exp().clamp(max=options.cap)
    return -(weight_T * batch.advantage_T * batch.logprob_T).sum()


def rwsft(batch: LossBatch, options: LossOptions) -> Tensor:  # noqa: ARG001
    """Fine-tuning weighted by the advantage, without importance weights. The sum over tokens."""
    return -(batch.advantage_T * batch.logprob_T).sum()


LOSSES: dict[LossName, Callable[[LossBatch, LossOptions], Tensor]] = {
    "topr": topr,
    "grpo": grpo,
    "cispo": cispo,
    "rwsft": rwsft,
}
NEEDS_OLD_LOGPROBS: frozenset[LossName] = frozenset({"topr", "grpo", "cispo"})


def reference_kl(logprob_T: Tensor, reference_T: Tensor) -> Tensor:
    """Σ of Schulman's k3 estimate of KL(policy, reference): e^d - d - 1, d = reference - policy."""
    difference_T = reference_T - logprob_T
    return (difference_T.exp() - difference_T - 1).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the policy is from the one that sampled: sums, so that processes can add them up."""

    tokens: float
    weight: float  # Σ ρ
    weight_squared: float  # Σ ρ²
    log_ratio: float  # Σ |ln ρ|

    @property
    def effective_share(self) -> float:
        """Effective sample size over the number of tokens, (Σρ)² / (n Σρ²): 1 on policy."""
        return self.weight**2 / (self.tokens * self.weight_squared) if self.tokens else 1.0

    @property
    def mean_log_ratio(self) -> float:
        """Mean of |ln π − ln π_old| over the tokens, in nats; 0 without tokens."""
        return self.log_ratio / self.tokens if self.tokens else 0.0


def drift_sums(logprob_T: Tensor, old_logprob_T: Tensor) -> Tensor:
    """The four sums of `Drift`, as a tensor."""
    log_ratio_T = (logprob_T - old_logprob_T).detach().double()
    ratio_T = log_ratio_T.exp()
    count = log_ratio_T.new_tensor(float(len(log_ratio_T)))
    return torch.stack((count, ratio_T.sum(), (ratio_T**2).sum(), log_ratio_T.abs().sum()))

"""Each loss against a plain float64 version, token by token in Python, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

import torch

from entrogate.train.losses import (
    LOSSES,
    Drift,
    LossBatch,
    LossOptions,
    drift_sums,
    reference_kl,
)
from entrogate.train.settings import LossName

OPTIONS = LossOptions(clip=0.2, cap=1.5)


def batch(seed: int) -> LossBatch:
    generator = torch.Generator().manual_seed(seed)
    n = 40
    logprob = -3 * torch.rand(n, generator=generator, dtype=torch.float64)
    old = logprob + torch.randn(n, generator=generator, dtype=torch.float64) * 0.5
    advantage = torch.randn(n, generator=generator, dtype=torch.float64)
    advantage[:3] = 0.0
    return LossBatch(
        logprob_T=logprob.requires_grad_(),
        old_logprob_T=old,
        advantage_T=advantage,
        sequence_T=torch.arange(n) // 10,
    )


def gradient_of(given: LossBatch) -> list[float]:
    assert given.logprob_T.grad is not None
    return given.logprob_T.grad.tolist()


def plain(name: str, given: LossBatch, options: LossOptions) -> tuple[float, list[float]]:
    """Loss and gradient by the book: weights are constants, so the gradient is -w A."""
    logprobs, olds = given.logprob_T.tolist(), given.old_logprob_T.tolist()
    sequences = given.sequence_T.tolist()
    total, gradient = 0.0, []
    for place, (new, old, a) in enumerate(
        zip(logprobs, olds, given.advantage_T.tolist(), strict=True)
    ):
        rho = math.exp(new - old)
        if name == "topr":
            if options.ratio == "sequence":
                mine = [i for i, s in enumerate(sequences) if s == sequences[place]]
                rho = math.exp(sum(logprobs[i] - olds[i] for i in mine))
            weight = 1.0 if a >= 0 else min(rho, 1.0)
            total, slope = total - weight * a * new, -weight * a
        elif name == "grpo":
            clipped = min(max(rho, 1 - options.clip), 1 + options.clip)
            chosen = min(rho * a, clipped * a)
            total -= chosen
            inside = 1 - options.clip <= rho <= 1 + options.clip
            slope = -rho * a if inside or rho * a < clipped * a else 0.0
        elif name == "cispo":
            weight = min(rho, options.cap)
            total, slope = total - weight * a * new, -weight * a
        else:
            total, slope = total - a * new, -a
        gradient.append(slope)
    return total, gradient


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient(name: LossName, seed: int) -> None:
    given = batch(seed)
    loss = LOSSES[name](given, OPTIONS)
    loss.backward()
    expected, gradient = plain(name, given, OPTIONS)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert gradient_of(given) == pytest.approx(gradient, rel=1e-12)


def test_topr_with_the_ratio_of_a_sequence() -> None:
    given, options = batch(0), LossOptions(ratio="sequence")
    loss = LOSSES["topr"](given, options)
    loss.backward()
    expected, gradient = plain("topr", given, options)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert gradient_of(given) == pytest.approx(gradient, rel=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
def test_on_policy_all_have_the_policy_gradient(name: LossName) -> None:
    given = batch(1)
    same = LossBatch(
        logprob_T=given.logprob_T,
        old_logprob_T=given.logprob_T.detach(),
        advantage_T=given.advantage_T,
        sequence_T=given.sequence_T,
    )
    LOSSES[name](same, OPTIONS).backward()
    assert gradient_of(given) == (-given.advantage_T).tolist()


@pytest.mark.parametrize("name", ["grpo", "rwsft"])
def test_gradcheck(name: LossName) -> None:
    """Autograd against finite differences; the weights of the others are constants."""
    given = batch(2)

    def loss(logprob: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](
            LossBatch(
                logprob_T=logprob,
                old_logprob_T=given.old_logprob_T,
                advantage_T=given.advantage_T,
                sequence_T=given.sequence_T,
            ),
            OPTIONS,
        )

    checked: Callable[..., bool] = torch.autograd.gradcheck
    assert checked(loss, (given.logprob_T,))


def test_reference_kl_estimates_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    q = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    # Weighted by p, the k3 terms of all outcomes sum to KL(p, q).
    exact = (p.exp() * (p - q)).sum()
    terms = torch.stack([reference_kl(p[i : i + 1], q[i : i + 1]) for i in range(50)])
    assert (p.exp() * terms).sum().item() == pytest.approx(exact.item(), rel=1e-12)
    assert (terms >= 0).all()


def test_drift() -> None:
    new, old = torch.tensor([0.0, math.log(2.0)]), torch.tensor([0.0, 0.0])
    count, weight, squared, log_ratio = drift_sums(new, old).tolist()
    drift = Drift(tokens=count, weight=weight, weight_squared=squared, log_ratio=log_ratio)
    assert drift.effective_share == pytest.approx((1 + 2) ** 2 / (2 * (1 + 4)))
    assert drift.mean_log_ratio == pytest.approx(math.log(2) / 2)

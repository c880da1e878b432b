# ruff: noqa: N806 (shape suffixes)
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingTypeStubs=false
"""The training loop: packed sequences, one loss, checkpoints that go on exactly where they stopped.

Runs alone or under ``accelerate launch``: the packs of a step are dealt out to the processes, the
loss is divided by the trained tokens of the whole step, and gradients are added up, so the number
of processes changes nothing but the time.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from accelerate import Accelerator
from torch import Tensor

from entrogate.train.checkpoints import Checkpoints, gather, writing
from entrogate.train.data import DataError, TrainingSequence
from entrogate.train.losses import (
    LOSSES,
    NEEDS_OLD_LOGPROBS,
    Drift,
    LossBatch,
    LossOptions,
    drift_sums,
    reference_kl,
)
from entrogate.train.model import Policy
from entrogate.train.packing import Pack, make_pack, plan_epoch
from entrogate.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimiser step did. Means are over its trained tokens."""

    step: int
    steps: int
    epoch: int
    loss: float
    ce: float
    kl: float
    effective_share: float
    mean_log_ratio: float
    grad_norm: float
    learning_rate: float
    tokens: int
    trained_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended: ``stopped`` says why before its last step, or is None.

    ``too_long`` sequences did not fit into the model's context and were left out.
    """

    steps: int
    too_long: int
    stopped: str | None
    tokens_per_second: float


Progress = Callable[[StepReport], None]


def train(
    sequences: Sequence[TrainingSequence],
    settings: TrainSettings,
    *,
    trackers: Sequence[Progress] = (),
) -> RunResult:
    """Train, or go on with the run that ``settings.out`` holds; saves the result there.

    ``trackers`` are called by the first process after each step.
    Raises DataError for data that the model cannot take, EntrogateError for an unusable folder.
    """
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no")
    torch.manual_seed(settings.seed)
    policy = Policy.load(settings)
    fitting = _fitting(sequences, policy)
    plan = _plan(fitting, settings)
    optimizer: Any = torch.optim.AdamW(
        policy.trainable(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    policy.model, optimizer = accelerator.prepare(policy.model, optimizer)
    checkpoints = Checkpoints(Path(settings.out))
    unwrapped = accelerator.unwrap_model(policy.model)
    inner: Any = optimizer.optimizer
    done, stopped = checkpoints.resume(unwrapped, inner)
    loop = _Loop(accelerator, policy, optimizer, settings, len(plan))
    tokens, began = 0, time.monotonic()
    for step in plan[done:] if stopped is None else ():
        report = loop.step(step, [[fitting[i] for i in pack] for pack in step.packs])
        done = step.number
        tokens += report.tokens
        stopped = _reason_to_stop(report, settings)
        if accelerator.is_main_process:
            checkpoints.log(orjson.dumps(asdict(report)))
            for track in trackers:
                track(report)
        if stopped is not None or step is plan[-1] or done % settings.save_every == 0:
            state = gather(unwrapped, inner, step=done, stopped=stopped)
            if accelerator.is_main_process:
                checkpoints.save(state)
        if stopped is not None:
            break
    weights = accelerator.get_state_dict(policy.model)
    if accelerator.is_main_process:
        with writing(Path(settings.out)):
            policy.save(unwrapped, Path(settings.out), weights)
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - began
    accelerator.end_training()
    return RunResult(
        steps=done,
        too_long=len(sequences) - len(fitting),
        stopped=stopped,
        tokens_per_second=tokens / max(seconds, 1e-9),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What one optimiser step trains on: its packs, each the indices of its sequences."""

    number: int  # from 1
    epoch: int
    packs: list[list[int]]


class _Loop:
    """One optimiser step after the other."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        optimizer: Any,
        settings: TrainSettings,
        total: int,
    ) -> None:
        self._accelerator = accelerator
        self._policy = policy
        self._optimizer = optimizer
        self._settings = settings
        self._total = total
        self._loss = LOSSES[settings.loss]
        self._options = LossOptions(clip=settings.clip, cap=settings.cap, ratio=settings.ratio)

    def step(self, planned: _Step, packs: Sequence[Sequence[TrainingSequence]]) -> StepReport:
        began = time.monotonic()
        accelerator, settings = self._accelerator, self._settings
        trained = sum(int(s.mask[1:].sum()) for pack in packs for s in pack)
        rank, processes = accelerator.process_index, accelerator.num_processes
        own = packs[rank::processes]
        sums = torch.zeros(7, dtype=torch.float64, device=accelerator.device)
        rate = _learning_rate(planned.number, self._total, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # A process without a pack of its own takes part with one that counts for nothing.
        work = [(pack, 1.0) for pack in own] or [(packs[0], 0.0)]
        for place, (pack, weight) in enumerate(work):
            syncs = place == len(work) - 1
            quiet = contextlib.nullcontext() if syncs else accelerator.no_sync(self._policy.model)
            with quiet:
                loss, found = self._forward(_to(make_pack(pack), accelerator.device))
                # Processes average their gradients; the loss of the step is a sum over them.
                accelerator.backward(loss * (weight * processes / max(trained, 1)))
                sums += found * weight
        norm = accelerator.clip_grad_norm_(
            [p for g in self._optimizer.param_groups for p in g["params"]], settings.max_grad_norm
        )
        self._optimizer.step()
        self._optimizer.zero_grad()
        total: Any = accelerator.reduce(sums, "sum")
        loss, ce, kl, *drifted = total.tolist()
        drift = _as_drift(drifted)
        return StepReport(
            step=planned.number,
            steps=self._total,
            epoch=planned.epoch,
            loss=loss / max(trained, 1),
            ce=ce / max(trained, 1),
            kl=kl / max(trained, 1),
            effective_share=drift.effective_share,
            mean_log_ratio=drift.mean_log_ratio,
            grad_norm=float(norm if norm is not None else math.nan),
            learning_rate=rate,
            tokens=sum(len(s.input_ids) for pack in packs for s in pack),
            trained_tokens=trained,
            seconds=time.monotonic() - began,
        )

    def _forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """The summed loss of a pack, and the sums that are reported."""
        settings = self._settings
        logprob_T = self._policy.logprobs(pack)
        batch = LossBatch(
            logprob_T=logprob_T,
            old_logprob_T=pack.old_logprob_T,
            advantage_T=pack.advantage_T,
            sequence_T=pack.sequence_T,
        )
        loss = self._loss(batch, self._options)
        ce = -(logprob_T * pack.successful_T).sum()
        kl = logprob_T.new_zeros(())
        if settings.kl_weight:
            kl = reference_kl(logprob_T, self._policy.reference_logprobs(pack))
        total = loss + settings.ce_weight * ce + settings.kl_weight * kl
        reported = torch.stack((loss.detach(), ce.detach(), kl.detach())).double()
        return total, torch.cat((reported, drift_sums(logprob_T, pack.old_logprob_T)))


def _as_drift(sums: Sequence[float]) -> Drift:
    tokens, weight, weight_squared, log_ratio = sums
    return Drift(tokens=tokens, weight=weight, weight_squared=weight_squared, log_ratio=log_ratio)


def _plan(sequences: Sequence[TrainingSequence], settings: TrainSettings) -> list[_Step]:
    """The steps of all epochs, up to ``max_steps``; each takes ``batch_tokens`` or a bit more."""
    plan: list[_Step] = []
    for epoch in range(settings.epochs):
        packs = plan_epoch(
            sequences, seed=settings.seed, epoch=epoch, pack_tokens=settings.pack_tokens
        )
        tokens = settings.batch_tokens
        for pack in packs:
            if tokens >= settings.batch_tokens:
                plan.append(_Step(number=len(plan) + 1, epoch=epoch, packs=[]))
                tokens = 0
            plan[-1].packs.append(pack)
            tokens += sum(len(sequences[i].input_ids) for i in pack)
    return plan[: settings.max_steps]


def _fitting(sequences: Sequence[TrainingSequence], policy: Policy) -> list[TrainingSequence]:
    """The sequences that the model can take; DataError when an id is not in its vocabulary."""
    largest = max((int(s.input_ids.max()) for s in sequences), default=0)
    if largest >= policy.vocab_size:
        raise DataError(
            f"token id {largest} is not in the model's vocabulary of {policy.vocab_size}: the data "
            "comes from another tokenizer"
        )
    fitting = [s for s in sequences if len(s.input_ids) <= policy.max_length]
    if not fitting:
        raise DataError(f"every sequence is longer than the model's {policy.max_length} tokens")
    return fitting


def _learning_rate(number: int, total: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a linear way down to a tenth."""
    if number <= settings.warmup_steps:
        return settings.learning_rate * number / settings.warmup_steps
    left = (total - number) / max(total - settings.warmup_steps, 1)
    return settings.learning_rate * (0.1 + 0.9 * left)


def _reason_to_stop(report: StepReport, settings: TrainSettings) -> str | None:
    if not math.isfinite(report.loss) or not math.isfinite(report.grad_norm):
        raise DataError(f"step {report.step}: the loss is {report.loss}: lower the learning rate")
    if settings.loss not in NEEDS_OLD_LOGPROBS:
        return None
    if report.effective_share < settings.stop_effective_share:
        return f"effective sample share {report.effective_share:.2f}"
    if report.mean_log_ratio > settings.stop_log_ratio:
        return f"mean |ln ratio| {report.mean_log_ratio:.2f}"
    return None


def _to(pack: Pack, device: torch.device) -> Pack:
    moved: dict[str, Any] = {}
    for name in Pack.__slots__:
        value: Any = getattr(pack, name)
        moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return Pack(**moved)

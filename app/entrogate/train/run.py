# pyright: reportMissingTypeStubs=false
"""A training run from data to result: read, label, check, train, record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from entrogate.label.rewards import RewardOptions
from entrogate.label.worth import Labelling
from entrogate.model_hashes import PROBE_PREFIX, hashes_of, probe_of
from entrogate.train.data import DataError, DataReport, label_rows, read_rows
from entrogate.train.losses import NEEDS_OLD_LOGPROBS
from entrogate.train.run_record import check_same_run, describe, write_record
from entrogate.train.settings import TrainSettings
from entrogate.train.trainer import Progress, RunResult, StepReport, train

Say = Callable[[str], None]


def run(settings: TrainSettings, *, say: Say) -> RunResult:
    """Do it all; raises EntrogateError, in one line, for what cannot be done."""
    main = PartialState().is_main_process
    if not main:
        say = _silent
    rows = read_rows(settings.data)
    sequences, report = label_rows(
        rows, labelling_of(settings), needs_old_logprobs=settings.loss in NEEDS_OLD_LOGPROBS
    )
    del rows
    _check_tokenizer(settings.model, report)
    say(_summary(report))
    described = describe(settings, report)
    out = Path(settings.out)
    check_same_run(out, described)
    if main:
        write_record(out, described, None)
    trackers = [_teller(say), _tensorboard(out / "tensorboard")]
    result = train(sequences, settings, trackers=trackers)
    if main:
        write_record(out, described, result)
    ending = f"stopped early: {result.stopped}" if result.stopped else "done"
    long = f", {result.too_long} sequences too long for the model" if result.too_long else ""
    say(f"{ending}, {result.steps} steps, {result.tokens_per_second:.0f} tokens/s{long}")
    return result


def labelling_of(settings: TrainSettings) -> Labelling:
    """The labels that a loss wants: rwsft takes rewards as they are, the others advantages."""
    return Labelling(
        reward=settings.reward,
        baseline=None if settings.loss == "rwsft" else settings.baseline,
        options=RewardOptions(
            alpha=settings.alpha,
            min_reduction=settings.min_reduction,
            no_calls=settings.no_calls,
        ),
        dense=settings.dense,
    )


def _check_tokenizer(model: str, report: DataReport) -> None:
    """DataError where the data tell which tokenizer they come from, and it is not the model's."""
    known = report.tokenizer_hashes - {""}
    folder = Path(model)
    if not known or not (folder / "tokenizer.json").is_file():
        return
    own = {hashes_of(folder).tokenizer}
    if any(each.startswith(PROBE_PREFIX) for each in known):
        own.add(probe_of(folder))
    if known - own:
        raise DataError(
            f"the data come from tokenizer {', '.join(sorted(known))}, {model} has"
            f" {' or '.join(sorted(own))}: "
            "train the model that sampled them"
        )


def _summary(report: DataReport) -> str:
    skipped = "".join(f", {count} × {reason}" for reason, count in sorted(report.skipped.items()))
    return (
        f"{report.trajectories} trajectories in {report.groups} groups, mean outcome "
        f"{report.mean_outcome:.3f}, {report.groups_of_calls_per_trajectory:.2f} calls each; "
        f"{report.trained_tokens} tokens to train on{skipped and '; left out' + skipped[1:]}"
    )


def _silent(text: str) -> None:
    """What a process other than the first says."""


def _tensorboard(folder: Path) -> Progress:
    writer: Any = None

    def track(report: StepReport) -> None:
        nonlocal writer
        if writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            writer = SummaryWriter(str(folder))
        for name, value in asdict(report).items():
            if name not in {"step", "steps", "epoch"}:
                writer.add_scalar(name, value, report.step)
        if report.step == report.steps:
            writer.close()

    return track


def _teller(say: Say) -> Progress:
    began = time.monotonic()
    first: list[int] = []

    def tell(report: StepReport) -> None:
        first.append(report.step)
        done = report.step - first[0] + 1
        left = (time.monotonic() - began) / done * (report.steps - report.step)
        say(
            f"step {report.step}/{report.steps}  loss {report.loss:+.4f}  "
            f"|ln ratio| {report.mean_log_ratio:.3f}  share {report.effective_share:.2f}  "
            f"grad {report.grad_norm:.2f}  {report.tokens / report.seconds:.0f} tokens/s  "
            f"{left / 60:.0f} min to go"
        )

    return tell

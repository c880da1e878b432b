"""Trains the fixture of `test_train`; run as a script: ``train_worker.py MODEL OUT STEPS [die]``.

With ``die`` it kills itself after the step before the last, as a crash would.
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import torch

from entrogate.train.data import TrainingSequence
from entrogate.train.settings import TrainSettings
from entrogate.train.trainer import StepReport, train

VOCABULARY = 64


def sequences(count: int = 24) -> list[TrainingSequence]:
    rng = np.random.default_rng(0)
    found: list[TrainingSequence] = []
    for number in range(count):
        length = int(rng.integers(8, 40))
        mask = np.arange(length) >= length // 3
        worth = rng.normal()
        found.append(
            TrainingSequence(
                trajectory_id=f"t{number}",
                input_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
                mask=mask,
                advantages=np.where(mask, worth, 0).astype(np.float32),
                old_logprobs=np.where(mask, -np.log(VOCABULARY), 0).astype(np.float32),
                temperature=0.8,
                successful=worth > 0,
            )
        )
    return found


def settings(model: str, out: str, **changed: object) -> TrainSettings:
    values: dict[str, object] = {
        "model": model,
        "data": ("fixture",),
        "out": out,
        "batch_tokens": 200,
        "pack_tokens": 60,
        "epochs": 4,
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "kl_weight": 0.1,
        "save_every": 3,
        "warmup_steps": 2,
        "stop_log_ratio": 100.0,
        "stop_effective_share": 0.0,
    }
    return TrainSettings.model_validate(values | changed)


def main(model: str, out: str, steps: str, die: str = "") -> None:
    torch.set_num_threads(1)
    last = int(steps)

    def progress(report: StepReport) -> None:
        print(f"{report.step} {report.loss!r} {report.kl!r} {report.grad_norm!r}", flush=True)
        if die and report.step == last - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    train(sequences(), settings(model, out, max_steps=last), trackers=[progress])


if __name__ == "__main__":
    main(*sys.argv[1:])

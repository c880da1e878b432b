# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Tokens a second of our trainer and of TRL's `SFTTrainer`: the same model, sequences and steps.

Each is run in a process of its own, in turns; ratios are taken within a round. Both train all
weights in float32 on cross-entropy over the same labels; ours in the form of reward-weighted
cross-entropy, with all that it does besides. Padding does not count as tokens.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entrogate.errors import EntrogateError

OURS, TRL = "entrogate", "trl"
_SEQUENCES = 16  # of a step
_PACK_TOKENS = 4096
_Say = Callable[[str], None]


def measure(data: str, model: str, *, steps: int, rounds: int, say: _Say) -> dict[str, Any]:
    """Paired rounds on the dataset ``data``. Raises EntrogateError when a run fails."""
    found: dict[str, list[float]] = {OURS: [], TRL: []}
    with tempfile.TemporaryDirectory(prefix="entrogate-bench-") as folder:
        rows = str(Path(folder) / "sft.parquet")
        _run("-m", "entrogate", "convert", data, "--format", "trl-sft", "--to", rows)
        for number in range(rounds):
            order = (OURS, TRL) if number % 2 else (TRL, OURS)
            for name in order:
                said = _run("-m", __name__, name, rows, model, str(steps))
                found[name].append(float(json.loads(said.splitlines()[-1])))
            ours, trl = found[OURS][-1], found[TRL][-1]
            say(f"round {number + 1}: {ours:.0f} and {trl:.0f} tokens/s, ratio {ours / trl:.2f}")
    ratios = [ours / trl for ours, trl in zip(found[OURS], found[TRL], strict=True)]
    return {
        "steps": steps,
        "tokens_per_second": {name: statistics.median(values) for name, values in found.items()},
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
    }


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EntrogateError(f"{' '.join(arguments[:3])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _rows(path: str, steps: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["input_ids", "labels"]).to_pylist()
    if len(rows) < steps * _SEQUENCES:
        raise EntrogateError(f"{len(rows)} sequences are too few for {steps} steps")
    return rows[: steps * _SEQUENCES]


def _ours(rows: list[dict[str, Any]], model: str, steps: int, out: str) -> float:
    """Seconds from the end of the first step to the end of the last."""
    import numpy as np

    from entrogate.train.data import TrainingSequence
    from entrogate.train.settings import TrainSettings
    from entrogate.train.trainer import train

    sequences = [
        TrainingSequence(
            trajectory_id=str(number),
            input_ids=np.array(row["input_ids"], dtype=np.int32),
            mask=np.array(row["labels"]) >= 0,
            advantages=(np.array(row["labels"]) >= 0).astype(np.float32),
            old_logprobs=np.zeros(len(row["labels"]), dtype=np.float32),
            temperature=1.0,
            successful=True,
        )
        for number, row in enumerate(rows)
    ]
    longest = max(len(sequence.input_ids) for sequence in sequences)
    total = sum(len(sequence.input_ids) for sequence in sequences)
    settings = TrainSettings(
        model=model,
        data=("bench",),
        out=out,
        loss="rwsft",
        lora_rank=0,
        pack_tokens=max(_PACK_TOKENS, longest),
        batch_tokens=max(_PACK_TOKENS, longest, total // steps),
        save_every=10**9,
    )
    ends: list[tuple[float, int]] = []
    train(
        sequences,
        settings,
        trackers=[lambda report: ends.append((time.perf_counter(), report.tokens))],
    )
    return sum(tokens for _, tokens in ends[1:]) / (ends[-1][0] - ends[0][0])


def _trl(rows: list[dict[str, Any]], model: str, steps: int, out: str) -> float:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    lengths = [len(row["input_ids"]) for row in rows]
    config = SFTConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=_SEQUENCES,
        train_sampling_strategy="sequential",
        max_length=None,
        save_strategy="no",
        report_to="none",
        logging_steps=steps,
        use_cpu=True,
        bf16=False,
    )
    loader: Any = AutoTokenizer
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=loader.from_pretrained(model),
        callbacks=[clock],
    )
    trainer.train()
    return sum(lengths[_SEQUENCES:]) / (clock.ends[-1] - clock.ends[0])


def main(name: str, path: str, model: str, steps: str) -> None:
    """One run in this process; prints tokens a second."""
    rows = _rows(path, int(steps))
    with tempfile.TemporaryDirectory(prefix="entrogate-bench-") as out:
        speed = (_ours if name == OURS else _trl)(rows, model, int(steps), out)
    sys.stdout.write(f"\n{speed}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""TRL's own trainer on what `entrogate convert --format trl-sft` wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("datasets")

import torch

from entrogate.cli import run
from tests.integration.organism import MODEL, Organism, exported


def mean_nll(organism: Organism, rows: list[dict[str, Any]]) -> float:
    """Over the labels that are not masked, in float64; label t belongs to the logits at t - 1."""
    found: list[float] = []
    for row in rows:
        with torch.inference_mode():
            logits = organism.model(torch.tensor([row["input_ids"]])).logits[0]
        logprobs = logits.log_softmax(-1)
        for position, label in enumerate(row["labels"]):
            if label != -100:
                found.append(-float(logprobs[position - 1, label]))
    return math.fsum(found) / len(found)


@pytest.mark.filterwarnings("default")  # those of TRL are not ours to mend
def test_its_sft_trainer_trains_on_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing TRL sets it, for this process and every vLLM that is started from it.
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    torch.set_num_threads(1)
    organism = Organism()
    data = exported(organism, tmp_path, tasks=2, runs=2)
    out = str(tmp_path / "sft.parquet")
    assert run(["convert", data, "--format", "trl-sft", "--to", out]) == 0
    loaded = load_dataset(
        "parquet", data_files=out, split="train", cache_dir=str(tmp_path / "cache")
    )
    rows: Any = list(loaded)
    masked = sum(label == -100 for row in rows for label in row["labels"])
    assert len(rows) == 4
    assert 0 < masked < sum(len(row["labels"]) for row in rows)
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=2,
        per_device_train_batch_size=len(rows),  # so the first batch is the whole file
        learning_rate=1e-3,
        logging_steps=1,
        max_length=None,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        model=str(MODEL),
        args=config,
        train_dataset=loaded,
        processing_class=AutoTokenizer.from_pretrained(MODEL),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(mean_nll(organism, rows), abs=1e-4)
    assert losses[1] < losses[0], "it learnt from them"

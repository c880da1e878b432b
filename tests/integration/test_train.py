"""The trainer on a tiny Qwen3: packed equals alone, killed equals uninterrupted, two equal one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate")
pytest.importorskip("peft")

import torch

from entrogate.cli import run
from entrogate.errors import EntrogateError
from entrogate.export.dataset import Dataset
from entrogate.export.exporter import export_settled
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.read.settled import Settling
from entrogate.train.data import DataError
from entrogate.train.packing import make_pack
from entrogate.train.trainer import train
from tests.integration.limits import limited_files
from tests.integration.train_worker import VOCABULARY, sequences, settings
from tests.unit.store.made import capture, turn

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("train_worker.py")
STEPS = 10
CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def worker(*arguments: str, launch: tuple[str, ...] = (), code: int = 0) -> list[str]:
    command = [sys.executable, *launch, str(WORKER), *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'app'}{os.pathsep}{ROOT}"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout.splitlines()


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def alone(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The uninterrupted run: its steps, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    return worker(model, str(folder), str(STEPS)), folder


def test_packed_log_probs_are_those_of_each_sequence_alone(model: str) -> None:
    from transformers import AutoModelForCausalLM

    from entrogate.train.model import Policy

    policy = Policy.load(settings(model, "unused", lora_rank=0))
    parts = sequences(6)
    packed = policy.logprobs(make_pack(parts)).detach().numpy()
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    expected: list[float] = []
    for part in parts:
        with torch.inference_mode():
            logits = plain(torch.from_numpy(part.input_ids).long()[None]).logits[0]
        logprobs = (logits / part.temperature).log_softmax(-1).numpy()
        at = np.flatnonzero(part.mask[1:])
        expected += logprobs[at, part.input_ids[at + 1]].tolist()
    np.testing.assert_allclose(packed, expected, atol=1e-5)


def test_the_loss_curve_is_reproduced(
    model: str, alone: tuple[list[str], Path], tmp_path: Path
) -> None:
    lines, folder = alone
    assert len(lines) == STEPS
    assert worker(model, str(tmp_path), str(STEPS)) == lines, "bit for bit"
    golden = json.loads((Path(__file__).parent / "recorded" / "loss_curve.json").read_text())
    losses = [float(line.split()[1]) for line in lines]
    assert losses == pytest.approx(golden, rel=1e-4), "as recorded, on any machine"
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, weights(tmp_path)[name])


def test_killed_and_resumed_equals_uninterrupted(
    model: str, alone: tuple[list[str], Path], tmp_path: Path
) -> None:
    lines, folder = alone
    before = worker(model, str(tmp_path), str(STEPS), "die", code=-9)
    after = worker(model, str(tmp_path), str(STEPS))
    assert before == lines[: STEPS - 1]
    assert after == lines[STEPS - len(after) :]
    assert 0 < len(after) < STEPS, "it went on, not over again"
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, weights(tmp_path)[name])
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == list(range(1, STEPS + 1))


def test_two_processes_give_the_same_losses(
    model: str, alone: tuple[list[str], Path], tmp_path: Path
) -> None:
    lines, folder = alone
    launch = (
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    )  # fmt: skip
    found = worker(model, str(tmp_path), str(STEPS), launch=launch)
    assert len(found) == STEPS
    for one, two in zip(lines, found, strict=True):
        numbers = [[float(x) for x in line.split()] for line in (one, two)]
        assert numbers[1] == pytest.approx(numbers[0], rel=2e-4, abs=1e-6)
    for name, tensor in weights(folder).items():
        assert torch.allclose(tensor, weights(tmp_path)[name], atol=1e-4)


def test_all_weights_learn_what_succeeded(model: str, tmp_path: Path) -> None:
    found: list[float] = []
    train(
        sequences(),
        settings(model, str(tmp_path), lora_rank=0, learning_rate=3e-3, ce_weight=5.0),
        trackers=[lambda report: found.append(report.ce)],
    )
    third = len(found) // 3
    assert sum(found[-third:]) < 0.9 * sum(found[:third])
    assert (tmp_path / "model.safetensors").is_file()


def test_it_stops_when_the_policy_has_gone_too_far(model: str, tmp_path: Path) -> None:
    result = train(
        sequences(),
        settings(model, str(tmp_path), stop_log_ratio=0.01, warmup_steps=0),
    )
    assert result.stopped is not None
    assert "ln ratio" in result.stopped
    assert result.steps == 1
    again = train(
        sequences(),
        settings(model, str(tmp_path), stop_log_ratio=0.01, warmup_steps=0),
    )
    assert (again.steps, again.stopped) == (1, result.stopped), "it stays stopped"


def test_a_lora_goes_on(model: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    train(sequences(), settings(model, first, max_steps=2))
    still = {"adapter": first, "learning_rate": 1e-12, "max_steps": 1}
    train(sequences(), settings(model, second, **still))
    for name, tensor in weights(Path(first)).items():
        assert torch.allclose(tensor, weights(Path(second))[name], atol=1e-9)
    assert any(
        tensor.abs().sum() for name, tensor in weights(Path(first)).items() if "lora_B" in name
    )
    with pytest.raises(EntrogateError, match="has rank 4, not 8"):
        train(sequences(), settings(model, str(tmp_path / "other"), adapter=first, lora_rank=8))
    with pytest.raises(EntrogateError, match="cannot load the LoRA"):
        train(sequences(), settings(model, str(tmp_path / "other"), adapter=str(tmp_path)))


def test_shards_are_gathered_and_dealt_out_again(model: str, tmp_path: Path) -> None:
    """Two processes under FSDP2, on the CPU, against one that holds all weights."""
    from transformers import AutoModelForCausalLM

    from tests.integration import sharded_worker

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", sharded_worker.__file__, model, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "app"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=sharded_worker.RATE)
    for number, file in ((1, "checkpoint-000001.pt"), (2, "after.pt")):
        sharded_worker.step(alone, optimizer, 0, 1)
        saved = torch.load(tmp_path / file, weights_only=True)
        saved = saved["weights"] if number == 1 else saved
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(saved[name], parameter.detach(), atol=1e-4, rtol=1e-3)


def test_what_the_model_cannot_take(model: str, tmp_path: Path) -> None:
    foreign = sequences(4)
    foreign[0].input_ids[0] = VOCABULARY
    with pytest.raises(DataError, match="another tokenizer"):
        train(foreign, settings(model, str(tmp_path)))
    with pytest.raises(EntrogateError, match="cannot load model"):
        train(sequences(4), settings(str(tmp_path / "none"), str(tmp_path)))
    long = sequences(4)
    long[0] = replace(long[0], **{
        name: np.tile(getattr(long[0], name), CONTEXT)
        for name in ("input_ids", "mask", "advantages", "old_logprobs")
    })  # fmt: skip
    result = train(long, settings(model, str(tmp_path / "long"), max_steps=1))
    assert result.too_long == 1
    with pytest.raises(DataError, match="every sequence is longer"):
        train(long[:1], settings(model, str(tmp_path / "long")))
    (tmp_path / "file").write_text("x")
    with pytest.raises(EntrogateError, match="cannot write"):
        train(sequences(4), settings(model, str(tmp_path / "file" / "out")))
    train(sequences(4), settings(model, str(tmp_path / "run"), max_steps=1))
    with pytest.raises(EntrogateError, match="another model or LoRA"):
        train(sequences(4), settings(model, str(tmp_path / "run"), lora_rank=8))


def test_a_full_disk_loses_no_checkpoint(model: str, tmp_path: Path) -> None:
    """Room for the log and no more: one line, and with room again the run goes on."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    train(sequences(8), settings(model, str(whole), max_steps=4, save_every=2))
    train(sequences(8), settings(model, str(out), max_steps=2, save_every=2))
    with limited_files(8192), pytest.raises(EntrogateError, match="cannot write to") as raised:
        train(sequences(8), settings(model, str(out), max_steps=4, save_every=2))
    assert "\n" not in str(raised.value)
    assert [file.name for file in out.glob("checkpoint-*")] == ["checkpoint-000002.pt"]
    result = train(sequences(8), settings(model, str(out), max_steps=4, save_every=2))
    assert result.steps == 4
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


async def exported(store_url: str, folder: Path) -> str:
    """A dataset of three tasks with two runs each, one right and one wrong."""
    store = Store.open(StoreSettings(url=store_url))
    await store.start()
    rng = np.random.default_rng(1)
    for task in range(3):
        for score in (0, 1):
            ids = rng.integers(0, VOCABULARY, 20).astype(np.int32)
            sampled = replace(capture(12, seed=task), token_ids=ids[:12])
            name = f"t{task}-{score}"
            record = turn(name, prompt=ids[12:], capture=sampled, length=12, task_id=f"task{task}")
            await store.commit_turns([record])
            await store.add_feedback(trajectory_id=name, score=score)
    with Dataset.writing(str(folder)) as dataset:
        export_settled(
            store, dataset, settling=Settling(), wanted=TrajectoryFilter(complete=True), now=4e9
        )
    await store.aclose()
    return str(folder)


async def test_the_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = await exported(f"sqlite:///{tmp_path}/store.db", tmp_path / "data")
    out = tmp_path / "out"
    base = ["train", data, "--model", model, "--out", str(out), "--lora-rank", "4"]
    base += ["--batch-tokens", "64", "--pack-tokens", "32", "--reward", "outcome"]
    # The random log-probs of the fixture are not the model's: it would stop at once.
    base += ["--stop-log-ratio", "100", "--stop-effective-share", "0"]
    assert run(base) == 0
    said = capsys.readouterr().err
    assert "6 trajectories in 3 groups" in said
    assert "to go" in said
    record = json.loads((out / "record.json").read_text())
    assert record["result"]["stopped"] is None
    assert list(record["data"][data]) == [e.part for e in Dataset.reading(data).entries]
    assert (out / "adapter_model.safetensors").is_file()
    assert list((out / "tensorboard").iterdir())
    assert run([*base, "--seed", "1"]) == 1
    assert "holds another run (settings: seed differs)" in capsys.readouterr().err
    assert run(["train", str(tmp_path / "none"), "--model", model, "--out", str(out)]) == 1
    assert "is no dataset" in capsys.readouterr().err
    assert run([*base, "--clip", "2"]) == 2
    assert "clip" in capsys.readouterr().err

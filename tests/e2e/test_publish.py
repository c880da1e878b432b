"""A LoRA goes live in a running vLLM, and one that cannot leaves nothing behind."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("peft")

from entrogate.cli import run
from tests.e2e.conftest import MODEL, NAME, serve_vllm


def make_adapter(folder: Path, rank: int, seed: int = 0) -> Path:
    """A LoRA on the bundled model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def lora_vllm(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    arguments = ("--enable-lora", "--max-lora-rank", "8")
    log = tmp_path_factory.mktemp("vllm-lora") / "vllm.log"
    with serve_vllm("off", log, *arguments, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as url:
        yield url


def served(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


def logprobs(url: str, model: str) -> list[float]:
    body = {"model": model, "prompt": "Who founded", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json={**body, "logprobs": 1}, timeout=60)
    return answer.json()["choices"][0]["logprobs"]["token_logprobs"]


def test_publish(lora_vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(tmp_path / "one", rank=8)
    command = ["publish", str(adapter), "--vllm", lora_vllm]
    assert run(command) == 0
    name = capsys.readouterr().out.strip()
    assert name.startswith(f"{NAME}-")
    assert served(lora_vllm) == [NAME, name]
    assert logprobs(lora_vllm, name) != pytest.approx(logprobs(lora_vllm, NAME), abs=1e-3)
    assert run(command) == 0, "what is there already is left alone"
    assert capsys.readouterr().out.strip() == name
    make_adapter(adapter, rank=8, seed=1)
    assert run(command) == 0
    second = capsys.readouterr().out.strip()
    assert second != name, "other weights, another name"

    before = served(lora_vllm)
    large = make_adapter(tmp_path / "large", rank=16)
    assert run(["publish", str(large), "--vllm", lora_vllm]) == 1
    assert "rank" in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").write_bytes(b"half a file")
    assert run(command) == 1
    assert "vLLM refused" in capsys.readouterr().err
    assert served(lora_vllm) == before, "nothing half-published"


def test_what_is_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["publish", str(tmp_path), "--vllm", "http://127.0.0.1:9"]) == 1
    assert "it has no adapter_config.json" in capsys.readouterr().err


def test_a_vllm_without_lora(vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(tmp_path, rank=4)
    assert run(["publish", str(adapter), "--vllm", vllm]) == 1
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in capsys.readouterr().err
    assert run(["publish", str(adapter), "--vllm", "http://127.0.0.1:9"]) == 1
    assert "no answer from" in capsys.readouterr().err

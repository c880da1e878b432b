"""A LoRA goes live in a running vLLM, and one that cannot leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("peft")

from entrogate.cli import run
from entrogate_lab.bench.processes import child, free_port
from tests.e2e.conftest import FULL, MODEL, NAME, chat_body, gateway_process, tasks


def make_adapter(folder: Path, rank: int, seed: int = 0, **changed: Any) -> Path:
    """A LoRA that changes what the bundled model says, or one with a ``changed`` configuration."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    if changed:
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL, **changed))
    else:
        base = AutoModelForCausalLM.from_pretrained(MODEL)
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(str(folder))
    return folder


def served(url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


def logprobs(url: str, model: str) -> list[float]:
    body = {"model": model, "prompt": "Who founded", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json={**body, "logprobs": 1}, timeout=60)
    return answer.json()["choices"][0]["logprobs"]["token_logprobs"]


def test_publish(vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make_adapter(tmp_path / "one", rank=8)
    command = ["publish", str(adapter), "--vllm", vllm]
    assert run(command) == 0
    name = capsys.readouterr().out.strip()
    assert name.startswith(f"{NAME}-")
    assert served(vllm) == [NAME, name]
    assert logprobs(vllm, name) != pytest.approx(logprobs(vllm, NAME), abs=1e-3)
    assert run(command) == 0, "what is there already is left alone"
    assert capsys.readouterr().out.strip() == name
    make_adapter(adapter, rank=8, seed=1)
    assert run(command) == 0
    second = capsys.readouterr().out.strip()
    assert second != name, "other weights, another name"

    before = served(vllm)
    large = make_adapter(tmp_path / "large", rank=16)
    assert run(["publish", str(large), "--vllm", vllm]) == 1
    assert "rank" in capsys.readouterr().err
    (adapter / "adapter_model.safetensors").write_bytes(b"half a file")
    assert run(command) == 1
    assert "is no safetensors file" in capsys.readouterr().err
    assert served(vllm) == before, "nothing half-published"


def test_what_is_no_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["publish", str(tmp_path), "--vllm", "http://127.0.0.1:9"]) == 1
    assert "it has no adapter_config.json" in capsys.readouterr().err


def weights(url: str) -> dict[str, dict[str, Any]]:
    data = httpx.get(f"{url}/admin/weights").json()["data"]
    return {each["version"]: each for each in data}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    started: float
    version: str
    trajectory: str
    text: str


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """One streamed answer; anything but a whole one fails the test."""
    started = time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        raw = (await response.aread()).decode()
    assert response.status_code == 200, raw
    parts = [part for part in raw.split("\n\n") if part]
    assert parts[-1] == "data: [DONE]", raw
    chunks = [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]
    assert not any("error" in chunk for chunk in chunks), raw
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[-1]["finish_reason"] in ("stop", "length"), raw
    return Answer(
        started=started,
        version=response.headers["x-entrogate-weight-version"],
        trajectory=response.headers["x-entrogate-trajectory-id"],
        text="".join(choice["delta"].get("content") or "" for choice in choices),
    )


async def test_a_canary_is_rolled_back_under_load(
    vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one request fails, before, during and after; each turn says what answered it."""
    adapter = make_adapter(tmp_path / "canary", rank=8, seed=2)
    bodies = [
        chat_body(task, tools=False, max_tokens=16, stream=True, temperature=1) for task in tasks(8)
    ]
    answers: list[Answer] = []
    with gateway_process(vllm, tmp_path, upstream__capture="off") as gateway:
        url = ["--gateway", gateway.url]
        assert run(["publish", str(adapter), *url, "--share", "0.5"]) == 0
        name = capsys.readouterr().out.strip()
        version = name.removeprefix(f"{NAME}-")
        stop = asyncio.Event()

        async def load(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
            while not stop.is_set():
                answers.append(await stream(client, body))

        async def until_answered(count: int, *versions: str) -> None:
            start = len(answers)
            while any(sum(a.version == v for a in answers[start:]) < count for v in versions):
                await asyncio.sleep(0.05)
                assert not any(worker.done() for worker in workers), "a request failed"

        async with httpx.AsyncClient(base_url=gateway.url, timeout=300) as client:
            workers = [asyncio.create_task(load(client, body)) for body in bodies]
            try:
                await until_answered(8, "base", version)
                while weights(gateway.url)[version]["in_flight"] == 0:
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(run, ["rollback", *url]) == 0
                rolled_back = time.monotonic()
                assert capsys.readouterr().out.strip() == name
                await until_answered(16, "base")
            finally:
                stop.set()
                await asyncio.gather(*workers)
        before = Counter(a.version for a in answers if a.started < rolled_back)
        after = Counter(a.version for a in answers if a.started >= rolled_back)
        assert set(before) == {"base", version}
        assert set(after) == {"base"}
        deadline = time.monotonic() + 60
        while version in weights(gateway.url):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert name not in served(vllm)
        for answer in answers:
            stored = httpx.get(f"{gateway.url}/v1/trajectories/{answer.trajectory}").json()
            assert [turn["weight_version"] for turn in stored["turns"]] == [answer.version]


def test_a_gateway_refuses_what_vllm_refuses(
    vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that is too high: vLLM's reason is shown. Another model's LoRA: vLLM takes it."""
    large = make_adapter(tmp_path / "large", rank=16)
    foreign = make_adapter(tmp_path / "foreign", rank=8, hidden_size=64, intermediate_size=96)
    before = served(vllm)
    with gateway_process(vllm, tmp_path, upstream__capture="off") as gateway:
        for adapter, reason in ((large, "rank"), (foreign, "of another model")):
            assert run(["publish", str(adapter), "--gateway", gateway.url, "--share", "1"]) == 1
            assert reason in capsys.readouterr().err
            assert list(weights(gateway.url)) == ["base"]
            assert served(vllm) == before
        body = chat_body(tasks(1)[0], tools=False, max_tokens=4)
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.headers["x-entrogate-weight-version"] == "base", answer.text


@pytest.mark.skipif(not FULL, reason="starts vLLM twice: E2E_FULL=1")
def test_a_managed_vllm_that_crashed_gets_its_adapters_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "one", rank=8)
    url = f"http://127.0.0.1:{free_port()}"
    arguments = ("serve", "--model", "almanac", "--lora", "--max-lora-rank", "8")
    with child(
        ("entrogate", *arguments, "--port", url.rsplit(":", 1)[1]),
        url=url,
        ready="/ready",
        log=tmp_path / "gateway.log",
        environment={"ENTROGATE_STORE__URL": f"sqlite:///{tmp_path}/store.db"},
        timeout_seconds=400,
    ) as process:
        assert run(["publish", str(adapter), "--gateway", url, "--share", "1"]) == 0
        name = capsys.readouterr().out.strip()
        body = chat_body(tasks(1)[0], tools=False, max_tokens=4)

        def model() -> str | None:
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            return answer.json()["model"] if answer.status_code == 200 else None

        assert model() == name
        guards = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        for pid in guards.stdout.split():
            subprocess.run(["pkill", f"-{signal.SIGKILL.value}", "-P", pid], check=True)
        deadline = time.monotonic() + 400
        while model() is not None:  # until the death is noticed
            assert time.monotonic() < deadline
        while model() != name:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert list(weights(url)) == ["base", name.removeprefix(f"{NAME}-")]

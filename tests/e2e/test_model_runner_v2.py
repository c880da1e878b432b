"""The plugin on vLLM's model runner V2: a real vLLM whose kernels Triton interprets on the CPU.

The same checks as on V1 (`test_engine`), smaller, for the interpreter is slow; and what the two
runners measure of the same text is compared.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrogate.cli import run
from entrogate_lab.almanac.tasks import Task
from tests.e2e import test_engine
from tests.e2e.conftest import StartGateway, chat_body, serve_vllm, tasks
from tests.e2e.test_engine import (
    counted,
    test_an_uncertain_answer_becomes_a_call,  # noqa: F401
    test_no_argument_ends_the_engine,  # noqa: F401
    test_ready_says_what_is_active,  # noqa: F401
    test_suppressed_calls_cost_nothing,  # noqa: F401
)
from tests.e2e.test_entropy_bounds import true_logprobs
from tests.e2e.test_gate import trajectory
from tests.e2e.test_publish import make_adapter
from tests.integration.harness import CHAT

INTERPRETER = Path(__file__).parent / "interpreter"
SETTINGS = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "PYTHONPATH": str(INTERPRETER),
}
# So few blocks (of 128 tokens) that requests are preempted.
ARGUMENTS = ("--max-model-len", "512", "--num-gpu-blocks-override", "6")
MIN_P = 0.05


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('captures')}/captures"


@pytest.fixture(scope="module")
def vllm(captures: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    log = tmp_path_factory.mktemp("vllm-v2") / "vllm.log"
    with serve_vllm(captures, log, *ARGUMENTS, **SETTINGS) as url:
        assert "Using V2 Model Runner" in log.read_text()
        yield url


@pytest.fixture(scope="module")
def estimator() -> str:
    return "exact"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_engine, "STREAMS", 8)
    monkeypatch.setattr(test_engine, "STREAM_TOKENS", 110)
    monkeypatch.setattr(test_engine, "TASKS", 5)


def test_many_streams_with_preemptions(vllm: str, start: StartGateway) -> None:
    test_engine.test_many_streams_with_aborts_and_choices(vllm, start)
    assert counted(vllm, "vllm:num_preemptions_total") > 0


def test_tokens_after_the_end_are_not_captured(start: StartGateway) -> None:
    """The next step is under way when a choice ends: what it samples is nobody's."""
    gateway = start()
    body = chat_body(tasks(1)[0], temperature=1.0, n=4, return_token_ids=True)
    with gateway.client() as client:
        answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    choices = {choice["index"]: choice for choice in answer.json()["choices"]}
    assert sum(choice["finish_reason"] != "length" for choice in choices.values()) >= 2
    turns = trajectory(gateway, answer.headers["x-entrogate-trajectory-id"])["turns"]
    for turn in turns:
        assert turn["capture_gap"] is None
        assert turn["tokens"]["token_ids"] == choices[turn["choice_index"]]["token_ids"]


def test_entropy_and_probabilities_are_those_of_the_weights(start: StartGateway) -> None:
    """Against a float64 forward pass over the ids that were sampled, some with a cut-off tail.

    The tail is cut by min-p: Triton's interpreter cannot run vLLM's kernel for top-k and top-p.
    """
    gateway = start()
    checked = 0
    with gateway.client() as client, ThreadPoolExecutor(6) as pool:

        def sample(indexed: tuple[int, Task]) -> dict[str, Any]:
            index, task = indexed
            fields: dict[str, Any] = {"min_p": MIN_P} if index % 2 else {"temperature": 0.7}
            body = chat_body(task, **{"temperature": 1.0, "seed": 1, "max_tokens": 40, **fields})
            response = client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
            name = response.headers["x-entrogate-trajectory-id"]
            return {**trajectory(gateway, name)["turns"][0], "cut": "min_p" in fields}

        turns = list(pool.map(sample, enumerate(tasks(8, seed=5))))
    for turn in turns:
        assert turn["capture_gap"] is None
        tokens = turn["tokens"]
        raw = true_logprobs(tokens["prompt_token_ids"], tokens["token_ids"])
        entropy = -(np.exp(raw) * raw).sum(-1)
        np.testing.assert_allclose(tokens["entropy_lower"], entropy, atol=1e-3)
        scaled = raw if turn["cut"] else raw / 0.7
        if turn["cut"]:
            likely = raw - raw.max(-1, keepdims=True) >= np.log(MIN_P)
            scaled = np.where(likely, raw, -np.inf)
        chosen = scaled[np.arange(len(raw)), tokens["token_ids"]]
        expected = chosen - np.log(np.exp(scaled).sum(-1))
        np.testing.assert_allclose(tokens["logprobs"], expected, atol=2e-3)
        checked += len(raw)
    assert checked > 150


def test_a_vllm_without_lora(vllm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This vLLM, unlike the one that the other files share, takes no LoRAs."""
    adapter = make_adapter(tmp_path, rank=4)
    assert run(["publish", str(adapter), "--vllm", vllm]) == 1
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in capsys.readouterr().err
    assert run(["publish", str(adapter), "--vllm", "http://127.0.0.1:9"]) == 1
    assert "no answer from" in capsys.readouterr().err

"""200 streams on model runner V1 with a KV cache so small that requests are preempted.

Only with E2E_FULL=1: a vLLM of its own. Runner V2 does the same in `test_model_runner_v2`.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.e2e import test_engine
from tests.e2e.conftest import FULL, StartGateway, serve_vllm

pytestmark = pytest.mark.skipif(not FULL, reason="needs E2E_FULL=1")
ARGUMENTS = ("--max-model-len", "512", "--num-gpu-blocks-override", "8")


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('captures')}/captures"


@pytest.fixture(scope="module")
def vllm(captures: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with serve_vllm(captures, tmp_path_factory.mktemp("vllm") / "vllm.log", *ARGUMENTS) as url:
        yield url


@pytest.fixture
def estimator() -> str:
    return "exact"


def test_many_streams_with_preemptions(
    vllm: str, start: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_engine, "STREAM_TOKENS", 110)  # so that they outgrow a block
    test_engine.test_many_streams_with_aborts_and_choices(vllm, start)
    assert test_engine.counted(vllm, "vllm:num_preemptions_total") > 0

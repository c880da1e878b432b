"""One real vLLM with the bundled model for the whole run; gateways in front of it as processes.

``E2E_FULL=1`` runs the sizes that docs/performance.md reports; without it they fit into CI.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import entrogate_lab
from entrogate.engine.environment import ADDRESS_VARIABLE
from entrogate.settings import ManagedSettings
from entrogate.upstream.parsers import choose_parsers
from entrogate.upstream.vllm_command import command_line, environment, installed_vllm
from entrogate_lab.almanac.tasks import Task, held_out_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS, tool_schema
from entrogate_lab.almanac.world import make_world
from entrogate_lab.bench.processes import child, free_port
from tests.collector import AGENT, Collector, collector

MODEL = Path(entrogate_lab.__file__).parent / "almanac" / "model"
NAME = "almanac"
FULL = os.environ.get("E2E_FULL") == "1"
# float32: greedy decoding then does not depend on what else is in the batch, and the engine's
# log-probs agree with a float64 forward pass to about 1e-5. The prefix cache would make the second
# of two equal requests compute less, in other shapes, than the first.
VLLM_ARGUMENTS = ("--dtype", "float32", "--no-enable-prefix-caching", "--max-model-len", "2048")
# A start takes most of a minute: one vLLM has what several files need (the plugin, traces, LoRAs).
# Files that need another one (a small cache, model runner V2) start their own.
LORA_ARGUMENTS = ("--enable-lora", "--max-lora-rank", "8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A gateway process on the real vLLM, and its store."""

    url: str
    pid: int
    store: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300)


StartGateway = Callable[..., Served]


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the plugin in the vLLM of `vllm` sends what it captures."""
    return f"ipc://{tmp_path_factory.mktemp('captures')}/captures"


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Generator[Collector | None]:
    """Where the vLLM of `vllm` sends its traces."""
    if AGENT is None:
        yield None
        return
    with collector(tmp_path_factory.mktemp("traces")) as running:
        yield running


@pytest.fixture(scope="session")
def vllm(
    captures: str, traces: Collector | None, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    """URL of a bare vLLM that serves the bundled model and takes LoRAs while it runs."""
    if importlib.util.find_spec("vllm") is None and not os.environ.get("CI"):
        pytest.skip("vLLM is not installed here")
    if not (MODEL / "config.json").is_file():
        pytest.skip("the bundled model has not been built")
    traced = () if traces is None else ("--otlp-traces-endpoint", f"{traces.endpoint}/v1/traces")
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    arguments = (*LORA_ARGUMENTS, *traced)
    with serve_vllm(captures, log, *arguments, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as url:
        yield url


@contextmanager
def serve_vllm(captures: str, log: Path, *arguments: str, **variables: str) -> Generator[str]:
    """A vLLM that serves the bundled model and sends captures to ``captures``; yields its URL."""
    build = installed_vllm()
    extra = (*VLLM_ARGUMENTS, *arguments)
    settings = ManagedSettings(model=str(MODEL), served_model_name=NAME, extra_args=extra)
    port = free_port()
    command = command_line(settings, parsers=choose_parsers(settings), port=port, cpu=build.cpu)
    url = f"http://127.0.0.1:{port}"
    with child(
        command[command.index("-m") + 1 :],
        url=url,
        ready="/health",
        log=log,
        environment={
            **environment({}, model=str(MODEL), cpu=build.cpu),
            ADDRESS_VARIABLE: captures,
            **variables,
        },
        timeout_seconds=600,
    ):
        yield url


@contextmanager
def gateway_process(upstream: str, folder: Path, **settings: str) -> Generator[Served]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    store = folder / "store.db"
    tree = {"upstream__url": upstream, "store__url": f"sqlite:///{store}", **settings}
    vocabulary = json.loads((MODEL / "config.json").read_text())["vocab_size"]
    tree.setdefault("upstream__vocab_size", str(vocabulary))
    with child(
        ("entrogate", "serve", "--port", str(port)),
        url=url,
        ready="/ready",
        log=folder / "gateway.log",
        environment={f"ENTROGATE_{name.upper()}": value for name, value in tree.items()},
    ) as process:
        yield Served(url=url, pid=process.pid, store=store)


@pytest.fixture(params=["exact", "topk"])
def estimator(request: pytest.FixtureRequest) -> str:
    """With the plugin in vLLM, and as if it were not there."""
    return request.param


@pytest.fixture
def start(vllm: str, captures: str, estimator: str, tmp_path: Path) -> Generator[StartGateway]:
    """Starts gateways: ``start(policy={...} | "name", mode="enforce")``."""
    capture = captures if estimator == "exact" else "off"
    with ExitStack() as stack:

        def begin(policy: str | dict[str, Any] = "observe", **settings: str) -> Served:
            if isinstance(policy, dict):
                content = {"schema_version": 1, "name": "test", "mode": "enforce", **policy}
                path = tmp_path / "policy.yaml"
                path.write_text(json.dumps(content))
                policy = str(path)
            settings.setdefault("upstream__capture", capture)
            return stack.enter_context(
                gateway_process(vllm, tmp_path, gate__policy=policy, **settings)
            )

        yield begin


def tasks(count: int, seed: int = 7) -> list[Task]:
    world = make_world(0)
    return [held_out_task(world, seed, index) for index in range(count)]


def chat_body(task: Task, *, tools: bool = True, **fields: Any) -> dict[str, Any]:
    """The first request of an agent on ``task``, greedy unless told otherwise."""
    body: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": task.question}],
        "temperature": 0,
        "max_tokens": 128,
        **fields,
    }
    if tools:
        body["tools"] = [tool_schema(name) for name in DOMAIN_TOOLS[task.domain]]
    return body

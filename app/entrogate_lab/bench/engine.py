"""What capture, exact entropy and the gate inside vLLM cost, and the gateway behind them.

One vLLM with the bundled model serves everything, so that only the requests differ: bare ones (the
plugin lets them by), the same with capture and gate and a consumer that drains the channel, the
same through a gateway that records, and, for comparison, bare ones through a proxy that does
nothing. They are loaded in turn within a round; ratios are taken within it. The model is the
smallest there is and the vocabulary small: the worst case for anything that is added to a step.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import entrogate_lab
from entrogate.engine.environment import ADDRESS_VARIABLE
from entrogate.engine.frames import GATE_ARGUMENT, REQUEST_ARGUMENT
from entrogate.engine.gate import GateNumbers
from entrogate.settings import ManagedSettings
from entrogate.upstream.captures import CaptureChannel
from entrogate.upstream.parsers import choose_parsers
from entrogate.upstream.vllm_command import command_line, environment, installed_vllm
from entrogate_lab.bench.load import Run, run_load
from entrogate_lab.bench.processes import child, cpu_seconds, free_port

BARE, CAPTURED, GATEWAY, PASSTHROUGH = "bare", "captured", "gateway", "passthrough"
_TARGETS = (BARE, CAPTURED, GATEWAY, PASSTHROUGH)
CONCURRENCIES = (1, 16)
_MODEL = "almanac"
_TOKENS = 64
_REQUESTS = {1: 16, 16: 64}  # of one target in one round
_CALL_TOKEN = 6  # any id serves: what is measured does not depend on which token it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The vLLM, where its plugin sends, and a gateway and a bare pass-through in front of it."""

    vllm: str
    captures: str
    gateway: str
    gateway_pid: int
    passthrough: str


@contextmanager
def servers() -> Generator[Servers]:
    """Start a vLLM with the bundled model and a gateway (observe, recording to SQLite)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="entrogate-bench-")))
        ports = [free_port() for _ in range(3)]
        vllm, gateway, passthrough = (f"http://127.0.0.1:{port}" for port in ports)
        captures = f"ipc://{folder}/captures"
        stack.enter_context(_vllm(vllm, ports[0], captures=captures, log=folder / "vllm.log"))
        process = stack.enter_context(
            child(
                ("entrogate", "serve", "--port", str(ports[1])),
                url=gateway,
                ready="/ready",
                log=folder / "gateway.log",
                environment={
                    "ENTROGATE_UPSTREAM__URL": vllm,
                    "ENTROGATE_UPSTREAM__CAPTURE": captures,
                    "ENTROGATE_STORE__URL": f"sqlite:///{folder / 'bench.db'}",
                },
            )
        )
        stack.enter_context(
            child(
                ("entrogate_lab.bench.passthrough", "--upstream", vllm, "--port", str(ports[2])),
                url=passthrough,
                ready="/health",
                log=folder / "passthrough.log",
            )
        )
        yield Servers(
            vllm=vllm,
            captures=captures,
            gateway=gateway,
            gateway_pid=process.pid,
            passthrough=passthrough,
        )


def _vllm(
    url: str, port: int, *, captures: str, log: Path
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A vLLM with the bundled model, whose plugin sends to ``captures``."""
    model = Path(entrogate_lab.__file__).parent / "almanac" / "model"
    build = installed_vllm()
    settings = ManagedSettings(model=str(model), served_model_name=_MODEL)
    command = command_line(settings, parsers=choose_parsers(settings), port=port, cpu=build.cpu)
    _say("starting vLLM")
    return child(
        command[command.index("-m") + 1 :],
        url=url,
        ready="/health",
        log=log,
        environment={
            **environment({}, model=str(model), cpu=build.cpu),
            ADDRESS_VARIABLE: captures,
        },
        timeout_seconds=600,
    )


async def measure(at: Servers, *, rounds: int, seed: int) -> dict[str, Any]:
    """``rounds`` paired rounds; the figures as `entrogate bench overhead --json` writes them."""
    rng = random.Random(seed)
    found: dict[int, dict[str, list[Run]]] = {
        c: {target: [] for target in _TARGETS} for c in CONCURRENCIES
    }
    cpu: dict[int, list[float]] = {c: [] for c in CONCURRENCIES}
    async with CaptureChannel(at.captures) as channel:
        for number in range(-1, rounds):  # the first warms up
            _say(f"round {number + 1} of {rounds}")
            for concurrency in CONCURRENCIES:
                for target in rng.sample(_TARGETS, len(_TARGETS)):
                    used = cpu_seconds(at.gateway_pid)
                    run = await _load(at, channel, target, concurrency, seed)
                    if number < 0:
                        continue
                    found[concurrency][target].append(run)
                    now = cpu_seconds(at.gateway_pid)
                    if target == GATEWAY and used is not None and now is not None:
                        events = sum(sample.events for sample in run.samples)
                        cpu[concurrency].append(1e6 * (now - used) / events)
    return _figures(found, cpu)


async def _load(
    at: Servers, channel: CaptureChannel, target: str, concurrency: int, seed: int
) -> Run:
    count = _REQUESTS[concurrency]
    url = {GATEWAY: at.gateway, PASSTHROUGH: at.passthrough}.get(target, at.vllm)
    followed = [channel.follow() for _ in range(count)] if target == CAPTURED else []
    extras = [
        {
            "vllm_xargs": {
                REQUEST_ARGUMENT: channel.argument(request, _CALL_TOKEN),
                GATE_ARGUMENT: _gate().pack(),
            }
        }
        for request in followed
    ] or [{}] * count
    bodies = [_body(seed + index, extra) for index, extra in enumerate(extras)]
    run = await run_load(url, bodies, concurrency=concurrency, stream=True)
    for request in followed:
        if not await request.complete(1) or request.choices[0].n_tokens != _TOKENS:
            raise RuntimeError("a capture did not arrive whole: this run would measure too little")
        request.close()
    return run


def _body(seed: int, extra: dict[str, Any]) -> bytes:
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": f"What is {seed % 9 + 1} + 4?"}],
        "max_tokens": _TOKENS,
        "ignore_eos": True,
        "temperature": 0.8,
        "stream": True,
    }
    return json.dumps(body | extra).encode()


def _gate() -> GateNumbers:
    """A gate that works at every step and changes nothing: its threshold is never met."""
    return GateNumbers(
        call_id=_CALL_TOKEN,
        think_open_id=-1,
        think_close_id=-1,
        statistic=0,
        threshold=-1.0,
        min_tokens=1,
        suppress_certain=True,
        suppress_uncertain=False,
        force_above=float("inf"),
        blank_ids=frozenset(),
        control_ids=frozenset(),
        call_close_id=-1,
    )


def _figures(found: dict[int, dict[str, list[Run]]], cpu: dict[int, list[float]]) -> dict[str, Any]:
    def ratio(concurrency: int, target: str) -> list[float]:
        pairs = zip(found[concurrency][target], found[concurrency][BARE], strict=True)
        return [_per_second(ours) / _per_second(bare) for ours, bare in pairs]

    def added(concurrency: int, target: str) -> float:
        pairs = zip(found[concurrency][target], found[concurrency][BARE], strict=True)
        return statistics.median(1e3 * (_first(ours) - _first(bare)) for ours, bare in pairs)

    rows: dict[str, dict[str, Any]] = {
        f"c{c}": {
            "bare_tokens_per_second": round(
                statistics.median(map(_per_second, found[c][BARE])) * _TOKENS, 1
            ),
            "engine_ratio": _spread(ratio(c, CAPTURED)),
            "gateway_ratio": _spread(ratio(c, GATEWAY)),
            "passthrough_ratio": _spread(ratio(c, PASSTHROUGH)),
            "gateway_ttft_added_ms_p50": round(added(c, GATEWAY), 3),
            "passthrough_ttft_added_ms_p50": round(added(c, PASSTHROUGH), 3),
            "gateway_cpu_us_per_event": round(statistics.median(cpu[c]), 1) if cpu[c] else None,
        }
        for c in CONCURRENCIES
    }
    return {
        "engine_throughput_ratio": min(rows[f"c{c}"]["engine_ratio"][1] for c in CONCURRENCIES),
        "gateway_throughput_ratio": min(rows[f"c{c}"]["gateway_ratio"][1] for c in CONCURRENCIES),
        "engine": rows,
    }


def _per_second(run: Run) -> float:
    return len(run.samples) / run.wall_seconds


def _first(run: Run) -> float:
    return statistics.median(sample.first_seconds for sample in run.samples)


def _spread(values: Sequence[float]) -> list[float]:
    """Lowest, median, highest."""
    return [round(v, 4) for v in (min(values), statistics.median(values), max(values))]


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    head = "on a real vLLM with the bundled model, against bare requests (lowest, median, highest)"
    rows = [
        f"{name}: " + ", ".join(f"{key} {value}" for key, value in row.items())
        for name, row in result["engine"].items()
    ]
    names = ("engine_throughput_ratio", "gateway_throughput_ratio")
    return "\n".join([head, *rows, *(f"{name:<24} {result[name]}" for name in names)])


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")

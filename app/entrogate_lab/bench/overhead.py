"""What the gateway costs, next to no gateway and to a bare aiohttp pass-through, in one run.

Every round measures the three targets in turn for every scenario, so that what the machine does
besides falls on all of them; ratios and differences are taken within a round, and their median
over the rounds is reported. CPU is the user and system time of the measured process.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrogate_lab.bench.load import Run, Sample, run_load
from entrogate_lab.bench.processes import child, cpu_seconds, free_port
from entrogate_lab.bench.script import script

DIRECT, PASSTHROUGH, ENTROGATE = "direct", "passthrough", "entrogate"
EXACT = "exact"  # the gateway that gets its captures from the engine
_ALL = (DIRECT, PASSTHROUGH, ENTROGATE, EXACT)
STREAM_TOKENS = 64  # with the role event and [DONE]: 66 events
_PROMPTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A kind of load. ``share`` of the requests asked for, since some take longer than others."""

    name: str
    concurrency: int
    stream: bool
    delay: float = 0.0  # seconds between two tokens of a stream
    share: float = 1.0


SCENARIOS = (
    Scenario(name="json_c1", concurrency=1, stream=False, share=0.5),
    Scenario(name="json_c16", concurrency=16, stream=False),
    Scenario(name="json_c64", concurrency=64, stream=False),
    Scenario(name="stream_c1", concurrency=1, stream=True, share=0.25),
    Scenario(name="stream_c16", concurrency=16, stream=True, share=0.5),
    Scenario(name="paced_c16", concurrency=16, stream=True, delay=0.005, share=0.25),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where load goes; without a pid its CPU time is unknown."""

    name: str
    url: str
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One scenario on one target in one round."""

    run: Run
    cpu: float | None  # seconds

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return len(self.run.samples) / self.run.wall_seconds

    @property
    def cpu_per_request(self) -> float | None:
        """CPU seconds of the target a request; None where they were not measured."""
        return None if self.cpu is None else self.cpu / len(self.run.samples)

    @property
    def cpu_per_event(self) -> float | None:
        """CPU seconds of the target a streamed event; None without events or a measurement."""
        events = sum(sample.events for sample in self.run.samples)
        return None if self.cpu is None or not events else self.cpu / events


@dataclass(slots=True)
class Rounds:
    """All that was measured: scenario → target → one entry for each round."""

    found: dict[str, dict[str, list[Measured]]] = field(
        default_factory=dict[str, dict[str, list[Measured]]]
    )

    def add(self, scenario: str, target: str, measured: Measured) -> None:
        """Append a round of ``scenario`` on ``target``."""
        self.found.setdefault(scenario, {}).setdefault(target, []).append(measured)

    def of(self, scenario: str, target: str) -> list[Measured]:
        """The rounds of ``scenario`` on ``target``, in order; none where it was not measured."""
        return self.found.get(scenario, {}).get(target, [])


async def measure(
    targets: Sequence[Target], *, model: str, tasks: int, rounds: int, seed: int
) -> Rounds:
    """Load every target with every scenario, ``tasks`` requests over ``rounds`` rounds."""
    rng = random.Random(seed)
    found = Rounds()
    bodies = {s.name: _bodies(s, model, seed) for s in SCENARIOS}
    for scenario in SCENARIOS:  # connections, caches and lazily built things first
        for target in targets:
            await _load(target, scenario, bodies[scenario.name][:_PROMPTS])
    for number in range(rounds):
        for scenario in SCENARIOS:
            _progress(f"round {number + 1} of {rounds}: {scenario.name}")
            count = max(scenario.concurrency, int(tasks * scenario.share / rounds))
            chosen = [bodies[scenario.name][i % _PROMPTS] for i in range(count)]
            order = list(targets)
            rng.shuffle(order)
            for target in order:
                found.add(scenario.name, target.name, await _load(target, scenario, chosen))
    return found


async def _load(target: Target, scenario: Scenario, bodies: Sequence[bytes]) -> Measured:
    before = None if target.pid is None else cpu_seconds(target.pid)
    run = await run_load(
        target.url, bodies, concurrency=scenario.concurrency, stream=scenario.stream
    )
    after = None if target.pid is None else cpu_seconds(target.pid)
    cpu = None if before is None or after is None else after - before
    return Measured(run=run, cpu=cpu)


def _bodies(scenario: Scenario, model: str, seed: int) -> list[bytes]:
    step = {"tokens": STREAM_TOKENS, "delay": scenario.delay}
    return [
        json.dumps(
            {
                "model": model,
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": f"Question {seed}-{i}. {script(step)}"},
                ],
                "max_tokens": STREAM_TOKENS,
                "temperature": 0,
                "stream": scenario.stream,
            }
        ).encode()
        for i in range(_PROMPTS)
    ]


def report(rounds: Rounds) -> dict[str, Any]:
    """The figures of a run, as `entrogate bench overhead --json` writes them."""
    result: dict[str, Any] = {
        name: {
            s.name: _summary(rounds.of(s.name, name)) for s in SCENARIOS if rounds.of(s.name, name)
        }
        for name in _ALL
    }
    ratios = {
        s.name: _paired(rounds, s.name, ENTROGATE, DIRECT, lambda m: m.per_second)
        for s in SCENARIOS
    }
    result["throughput_ratio"] = ratios["stream_c16"]
    result["throughput_ratio_by_scenario"] = ratios
    for name in ("ttft", "total"):
        for quantile in (50, 99):
            result[f"{name}_added_ms_p{quantile}"] = _added(rounds, "paced_c16", name, quantile)
    result["ttft_added_ms_p50_alone"] = _added(rounds, "stream_c1", "ttft", 50)
    events = [c for m in rounds.of("stream_c16", ENTROGATE) if (c := m.cpu_per_event) is not None]
    result["cpu_us_per_chunk"] = round(1e6 * statistics.median(events), 2) if events else None
    result["exact_throughput_ratio_by_scenario"] = {
        s.name: _paired(rounds, s.name, EXACT, DIRECT, lambda m: m.per_second) for s in SCENARIOS
    }
    result["exact_cpu_ratio_by_scenario"] = {
        s.name: _paired(rounds, s.name, EXACT, PASSTHROUGH, lambda m: m.cpu_per_request)
        for s in SCENARIOS
    }
    per_request = {
        s.name: _paired(rounds, s.name, ENTROGATE, PASSTHROUGH, lambda m: m.cpu_per_request)
        for s in SCENARIOS
    }
    result["cpu_ratio_per_request"] = per_request["json_c16"]
    result["cpu_ratio_per_event"] = per_request["stream_c16"]
    result["cpu_ratio_by_scenario"] = per_request
    return result


def _summary(measured: Sequence[Measured]) -> dict[str, float | None]:
    samples = [sample for one in measured for sample in one.run.samples]
    per_request = [c for m in measured if (c := m.cpu_per_request) is not None]
    per_event = [c for m in measured if (c := m.cpu_per_event) is not None]
    return {
        "requests_per_second": round(statistics.median(m.per_second for m in measured), 1),
        "ttft_ms_p50": _quantile(samples, "ttft", 50),
        "ttft_ms_p99": _quantile(samples, "ttft", 99),
        "total_ms_p50": _quantile(samples, "total", 50),
        "total_ms_p99": _quantile(samples, "total", 99),
        "cpu_us_per_request": round(1e6 * statistics.median(per_request), 1)
        if per_request
        else None,
        "cpu_us_per_event": round(1e6 * statistics.median(per_event), 2) if per_event else None,
    }


def _quantile(samples: Sequence[Sample], name: str, percent: int) -> float:
    seconds = sorted(s.first_seconds if name == "ttft" else s.total_seconds for s in samples)
    return round(1e3 * seconds[min(len(seconds) - 1, len(seconds) * percent // 100)], 3)


def _paired(
    rounds: Rounds, scenario: str, above: str, below: str, value: Callable[[Measured], float | None]
) -> float | None:
    pairs = zip(rounds.of(scenario, above), rounds.of(scenario, below), strict=False)
    ratios = [a / b for m, n in pairs if (a := value(m)) is not None and (b := value(n))]
    return round(statistics.median(ratios), 3) if ratios else None


def _added(rounds: Rounds, scenario: str, name: str, percent: int) -> float | None:
    """Milliseconds over the direct way; a tail needs all samples at once, a median not."""
    ours, direct = rounds.of(scenario, ENTROGATE), rounds.of(scenario, DIRECT)
    if not ours or not direct:
        return None
    if percent == 99:
        both = [[s for m in side for s in m.run.samples] for side in (ours, direct)]
        return round(_quantile(both[0], name, 99) - _quantile(both[1], name, 99), 3)
    pairs = zip(ours, direct, strict=True)
    added = [
        _quantile(m.run.samples, name, percent) - _quantile(n.run.samples, name, percent)
        for m, n in pairs
    ]
    return round(statistics.median(added), 3)


@contextmanager
def own_targets(policy: str) -> Generator[tuple[list[Target], str]]:
    """Start upstream, pass-through and gateways (recording to SQLite) as separate processes.

    One gateway captures by log-probs, one exactly, by the upstream's engine side.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="entrogate-bench-")))
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(4)]
        ports = [url.rsplit(":", 1)[1] for url in urls]
        captures = f"ipc://{folder / 'captures'}"
        stack.enter_context(
            child(
                ("entrogate_lab.bench.upstream", "--port", ports[0], "--captures", captures),
                url=urls[0],
                ready="/health",
                log=folder / "upstream.log",
            )
        )
        bare = stack.enter_context(
            child(
                ("entrogate_lab.bench.passthrough", "--upstream", urls[0], "--port", ports[1]),
                url=urls[1],
                ready="/health",
                log=folder / "passthrough.log",
            )
        )
        gateways = {
            name: stack.enter_context(
                child(
                    ("entrogate", "serve", "--port", ports[place]),
                    url=urls[place],
                    ready="/ready",
                    log=folder / f"{name}.log",
                    environment={
                        "ENTROGATE_UPSTREAM__URL": urls[0],
                        "ENTROGATE_UPSTREAM__CAPTURE": capture,
                        "ENTROGATE_STORE__URL": f"sqlite:///{folder / name}.db",
                        "ENTROGATE_GATE__POLICY": policy,
                    },
                )
            )
            for place, name, capture in ((2, ENTROGATE, "off"), (3, EXACT, captures))
        }
        yield (
            [
                Target(name=DIRECT, url=urls[0]),
                Target(name=PASSTHROUGH, url=urls[1], pid=bare.pid),
                Target(name=ENTROGATE, url=urls[2], pid=gateways[ENTROGATE].pid),
                Target(name=EXACT, url=urls[3], pid=gateways[EXACT].pid),
            ],
            "scripted",
        )


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    head = (
        "scenario",
        "target",
        "req/s",
        "TTFT p50",
        "p99",
        "total p50",
        "p99",
        "CPU/req",
        "CPU/event",
    )
    lines = ["{:<10} {:<12} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}".format(*head)]
    for scenario in SCENARIOS:
        for target in _ALL:
            row = result[target].get(scenario.name)
            if row is not None:
                cells = [_cell(value) for value in row.values()]
                lines.append(
                    f"{scenario.name:<10} {target:<12} {cells[0]:>8} "
                    + " ".join(f"{cell:>9}" for cell in cells[1:])
                )
    lines.append("times in ms, CPU in µs")
    names = ("throughput_ratio", "ttft_added_ms_p50", "ttft_added_ms_p99", "total_added_ms_p50")
    names += ("cpu_us_per_chunk", "cpu_ratio_per_request", "cpu_ratio_per_event")
    lines += [f"{name:<24} {_cell(result[name])}" for name in names]
    lines.append(f"CPU against pass-through {result['cpu_ratio_by_scenario']}")
    lines.append(f"  exact                  {result['exact_cpu_ratio_by_scenario']}")
    lines.append(f"exact, throughput        {result['exact_throughput_ratio_by_scenario']}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _progress(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")

"""The entropy gate against other ways to decide, at the same number of tool calls.

The same held-out tasks run through one real vLLM under policies that differ in the statistic only:
the policy to be judged, TARG's margin between the two best tokens (arXiv 2511.09803), and random
suppression. The others' thresholds are swept; the comparison is made where they make as many calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrogate.gate.policy import load_policy
from entrogate.gate.rules import signal_value
from entrogate.gate.schema import Policy, Signal, Statistic
from entrogate.settings import ManagedSettings, StoreSettings
from entrogate.store import Store
from entrogate.upstream.parsers import choose_parsers
from entrogate.upstream.vllm_command import command_line, environment, installed_vllm
from entrogate_lab.almanac.evaluate import evaluate
from entrogate_lab.bench.compare import Outcome, compare
from entrogate_lab.bench.processes import child, free_port

RIVALS = (Statistic.MARGIN_MEAN, Statistic.MARGIN_MIN, Statistic.UNIFORM)
_SHARES = (0.15, 0.35, 0.55, 0.75, 0.92)
_MODEL_NAME = "almanac"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a comparison needs to know; ``upstream`` is a running vLLM."""

    upstream: str
    model: str
    policy: str
    tasks: int
    seed: int
    world_seed: int
    concurrency: int
    folder: Path
    vocab_size: int | None = None


def run(plan: Plan) -> dict[str, Any]:
    """Run everything and return what `entrogate bench gate --json` writes."""
    judged = load_policy(plan.policy)
    observed, summary = _evaluate(plan, "observe", judged, mode="observe")
    values = _seen_values(plan.folder / "observe.db")
    enforced, enforced_summary = _evaluate(plan, "policy", judged, mode="enforce")
    points: list[dict[str, Any]] = []
    rivals: dict[str, Any] = {}
    for statistic in RIVALS:
        outcomes: list[Outcome] = []
        for threshold in _thresholds(statistic, values[statistic]):
            name = f"{statistic.value}-{len(outcomes)}"
            rival = _with_signal(judged, statistic, threshold)
            outcome, _ = _evaluate(plan, name, rival, mode="enforce")
            outcomes.append(outcome)
            points.append({"method": statistic.value, "threshold": threshold, **_mean(outcome)})
        rivals[statistic.value] = asdict(compare(enforced, outcomes, seed=plan.seed))
    return {
        "model": plan.model,
        "seed": plan.seed,
        "tasks": plan.tasks,
        "policy": judged.name,
        "policy_version": judged.version,
        "observe": {**_mean(observed), "summary": summary},
        "enforce": {**_mean(enforced), "summary": enforced_summary},
        "points": points,
        "at_equal_calls": rivals,
    }


def table(result: dict[str, Any]) -> str:
    """The comparison as text."""
    lines = [f"{'method':<22} {'threshold':>10} {'calls/task':>11} {'accuracy':>9}"]
    for name in ("observe", "enforce"):
        figures = result[name]
        label = name if name == "observe" else f"policy {result['policy']}"
        lines.append(_row(label, None, figures))
    lines += [_row(point["method"], point["threshold"], point) for point in result["points"]]
    lines.append("")
    lines.append(f"accuracy of policy {result['policy']} above each method at as many calls:")
    for method, found in result["at_equal_calls"].items():
        lines.append(
            f"{method:<22} {100 * found['difference']:+6.1f} points"
            f" (95 %: {100 * found['lower']:+.1f} to {100 * found['upper']:+.1f})"
        )
    return "\n".join(lines)


@contextmanager
def vllm(model: Path, folder: Path) -> Generator[str]:
    """A vLLM that serves ``model``; yields its URL."""
    build = installed_vllm()
    settings = ManagedSettings(model=str(model), served_model_name=_MODEL_NAME)
    port = free_port()
    command = command_line(settings, parsers=choose_parsers(settings), port=port, cpu=build.cpu)
    url = f"http://127.0.0.1:{port}"
    _say("starting vLLM")
    with child(
        command[command.index("-m") + 1 :],
        url=url,
        ready="/health",
        log=folder / "vllm.log",
        environment=environment({}, model=str(model), cpu=build.cpu),
        timeout_seconds=settings.startup_timeout_seconds,
    ):
        yield url


@contextmanager
def work_folder() -> Generator[Path]:
    """A folder for policies, stores and logs."""
    with tempfile.TemporaryDirectory(prefix="entrogate-bench-") as folder:
        yield Path(folder)


def _evaluate(
    plan: Plan, name: str, policy: Policy, *, mode: str
) -> tuple[Outcome, dict[str, Any]]:
    with _gateway(plan, name, policy) as url:
        result = asyncio.run(
            evaluate(
                f"{url}/v1",
                model=plan.model,
                tasks=plan.tasks,
                seed=plan.seed,
                modes=(mode,),
                concurrency=plan.concurrency,
                world_seed=plan.world_seed,
                progress=_progress(name),
            )
        )
    records = result["records"][mode]
    outcome = Outcome(
        correct=np.array([float(record["correct"]) for record in records]),
        calls=np.array([float(len(record["calls"])) for record in records]),
    )
    return outcome, result["modes"][mode]


@contextmanager
def _gateway(plan: Plan, name: str, policy: Policy) -> Generator[str]:
    path = plan.folder / f"{name}.yaml"
    path.write_text(json.dumps(policy.model_dump(mode="json", exclude_unset=True)))
    port = free_port()
    settings = {
        "ENTROGATE_UPSTREAM__URL": plan.upstream,
        "ENTROGATE_STORE__URL": f"sqlite:///{plan.folder / name}.db",
        "ENTROGATE_GATE__POLICY": str(path),
        "ENTROGATE_GATE__ALLOW_MODE_HEADER": "true",
    }
    if plan.vocab_size is not None:
        settings["ENTROGATE_UPSTREAM__VOCAB_SIZE"] = str(plan.vocab_size)
    url = f"http://127.0.0.1:{port}"
    with child(
        ("entrogate", "serve", "--port", str(port)),
        url=url,
        ready="/ready",
        log=plan.folder / f"{name}.log",
        environment=settings,
    ):
        yield url


def _seen_values(store_file: Path) -> dict[Statistic, list[float]]:
    """Every statistic's values at the calls of the observed run: where thresholds make sense."""
    found: dict[Statistic, list[float]] = {statistic: [] for statistic in RIVALS}
    store = Store.open(StoreSettings(url=f"sqlite:///{store_file}"), read_only=True)
    try:
        segments = [turn.calls[0].features.segment for turn in store.iter_decisions()]
    finally:
        asyncio.run(store.aclose())
    for statistic in RIVALS:
        probe = Signal(statistic=statistic)
        values = (signal_value(probe, segment) for segment in segments if segment is not None)
        found[statistic] = [value for value in values if value is not None]
    return found


def _thresholds(statistic: Statistic, values: Sequence[float]) -> list[float]:
    """Thresholds that suppress about the shares `_SHARES` of the calls that were observed."""
    if statistic is Statistic.UNIFORM:
        return list(_SHARES)
    shares = [1 - s for s in _SHARES] if statistic.certain_when_above else list(_SHARES)
    return [round(float(value), 6) for value in np.quantile(values, shares)]


def _with_signal(policy: Policy, statistic: Statistic, threshold: float) -> Policy:
    """``policy`` with another statistic and one threshold for all of its tools."""
    content = policy.model_dump(mode="json", exclude_unset=True)
    content["name"] = f"{policy.name}-{statistic.value}"
    content["signal"] = {
        "statistic": statistic.value,
        "min_tokens": policy.signal.min_tokens,
    }
    content["defaults"] = {**content.get("defaults", {}), "threshold": threshold}
    for rule in content.get("tools", {}).values():
        rule.pop("threshold", None)
    return Policy.model_validate(content)


def _mean(outcome: Outcome) -> dict[str, float]:
    return {
        "calls_per_task": round(float(outcome.calls.mean()), 4),
        "accuracy": round(float(outcome.correct.mean()), 4),
    }


def _row(label: str, threshold: float | None, figures: dict[str, Any]) -> str:
    shown = "" if threshold is None else f"{threshold:.3f}"
    calls, accuracy = figures["calls_per_task"], figures["accuracy"]
    return f"{label:<22} {shown:>10} {calls:>11.2f} {100 * accuracy:>8.1f}%"


def _progress(name: str) -> Callable[[str, int, int], None]:
    def show(_: str, done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            _say(f"{name}: {done} of {total} tasks")

    return show


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")

"""The evaluation: held-out tasks through the agent, in one mode or several, against any server."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import openai
from openai import AsyncOpenAI

from entrogate.errors import EntrogateError
from entrogate.label.f1 import squad_f1
from entrogate_lab.almanac.agent import Agent, Run
from entrogate_lab.almanac.intervals import mean, mean_interval, percentile, wilson
from entrogate_lab.almanac.scoring import JudgedCall, failure_cause, is_correct, judge_calls
from entrogate_lab.almanac.tasks import DOMAINS, Split, Task, held_out_task, training_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS
from entrogate_lab.almanac.world import World, make_world, shifted

# Of connecting, too: a server may share its two cores with much else.
_TIMEOUT_SECONDS = 600.0
MODES = ("observe", "enforce", "explore")
Progress = Callable[[str, int, int], None]
"""Called with the mode, the tasks done and the tasks in all."""


class EvaluationError(EntrogateError):
    """The evaluation cannot be made as asked; the message is one line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task in one mode; records of the same index in two modes are the same task."""

    task_id: str
    domain: str
    hops: int
    known: bool
    question: str
    gold: str
    answer: str | None
    correct: bool
    f1: float
    cause: str | None
    oracle_calls: int
    calls: tuple[JudgedCall, ...]
    turns: int
    completion_tokens: int
    wasted_tokens: int
    latency_seconds: float
    trajectory_id: str | None
    decisions: tuple[str | None, ...]


async def evaluate(
    base_url: str,
    *,
    model: str,
    tasks: int,
    seed: int,
    modes: Sequence[str],
    concurrency: int,
    api_key: str | None = None,
    progress: Progress | None = None,
    world_seed: int = 0,
    feedback: bool = False,
    split: Split = "held-out",
    repeats: int = 1,
    body: dict[str, Any] | None = None,
    shift: float = 0.0,
) -> dict[str, Any]:
    """Run `tasks` tasks of a split in each mode, each `repeats` times, and summarise the runs.

    Besides what `summarise` returns for each mode, the result has `records`: for each mode the
    `TaskRecord`s as dictionaries. `world_seed` is the seed that the model was built with; the
    fields of `body` go with every request. With `shift`, a share of the facts that the model knows
    has changed since it was taught them (`world.shifted`): tools and gold answers are the new ones.
    """
    world = shifted(make_world(world_seed), shift)
    summaries: dict[str, Any] = {}
    records: dict[str, Any] = {}
    async with connect(base_url, api_key) as client:
        entrogate = await check_server(client, model)
        _check_modes(modes, base_url, entrogate=entrogate)
        work = _Work(
            world=world,
            tasks=_draw(world, split, seed, tasks),
            seed=seed,
            repeats=repeats,
            concurrency=concurrency,
            progress=progress,
            feedback=feedback and entrogate,
        )
        for mode in modes:
            headers = _headers(mode)
            agent = Agent(
                client=client, model=model, source=world, headers=headers, body=body or {}
            )
            begun = time.monotonic()
            done = await work.run(agent, mode)
            wall_seconds = time.monotonic() - begun
            summaries[mode] = summarise(done, wall_seconds)
            records[mode] = [asdict(record) for record in done]
    return {
        "model": model,
        "seed": seed,
        "world_seed": world_seed,
        "entrogate": entrogate,
        "modes": summaries,
        "records": records,
    }


def _check_modes(modes: Sequence[str], base_url: str, *, entrogate: bool) -> None:
    for mode in modes:
        if mode != "observe" and not entrogate:
            raise EvaluationError(
                f"{base_url} is not Entrogate (no x-entrogate-trajectory-id in its answers): "
                f"only mode observe can be evaluated there, not {mode}"
            )


def _draw(world: World, split: Split, seed: int, count: int) -> list[Task]:
    draw = held_out_task if split == "held-out" else training_task
    return [draw(world, seed, index) for index in range(count)]


def summarise(records: Sequence[TaskRecord], wall_seconds: float) -> dict[str, Any]:
    """All figures of one mode, in total and by domain; intervals at 95 %."""
    total = _figures(records)
    total["wall_seconds"] = wall_seconds
    total["domains"] = {
        domain: _figures([record for record in records if record.domain == domain])
        for domain in DOMAINS
    }
    one_hop = [record for record in records if record.domain == "facts" and record.hops == 1]
    right = sum(record.correct for record in one_hop)
    total["one_hop_facts_accuracy"] = right / len(one_hop) if one_hop else None
    return total


@asynccontextmanager
async def connect(base_url: str, api_key: str | None) -> AsyncGenerator[AsyncOpenAI]:
    """A client whose errors come out as one-line `EvaluationError`s."""
    try:
        async with AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=1, timeout=_TIMEOUT_SECONDS
        ) as client:
            yield client
    except* openai.APIConnectionError as group:
        raise EvaluationError(f"no answer from {base_url}: {_reason(group)}") from group
    except* openai.APIStatusError as group:
        raise EvaluationError(f"{base_url} refused: {_reason(group)}") from group


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    cause = first.__cause__ or first
    return " ".join(str(cause).split()) or type(cause).__name__


async def check_server(client: AsyncOpenAI, model: str) -> bool:
    """Ask for one token; whether it is Entrogate that answers."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "What is 2 + 2?"}],
        max_tokens=1,
        extra_headers=_headers("observe"),
    )
    return "x-entrogate-trajectory-id" in raw.headers


def _headers(mode: str) -> dict[str, str]:
    return {"x-entrogate-mode": mode, "x-entrogate-debug": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The tasks that are run in each mode, and how."""

    world: World
    tasks: Sequence[Task]
    seed: int
    repeats: int
    concurrency: int
    progress: Progress | None
    feedback: bool

    async def run(self, agent: Agent, mode: str) -> list[TaskRecord]:
        """All tasks in one mode, task by task and repeat by repeat."""
        gate = asyncio.Semaphore(self.concurrency)
        finished = 0

        async def one(task: Task, repeat: int) -> TaskRecord:
            nonlocal finished
            async with gate:
                run = await agent.run(
                    task.question,
                    tools=DOMAIN_TOOLS[task.domain],
                    seed=f"{self.seed}-{task.id}" + (f"-{repeat}" if repeat else ""),
                    headers={"x-entrogate-task-id": task.id},
                )
                if self.feedback:
                    await _post_feedback(agent.client, task, run)
            finished += 1
            if self.progress is not None:
                self.progress(mode, finished, len(self.tasks) * self.repeats)
            return record_of(self.world, task, run)

        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(one(task, repeat))
                for task in self.tasks
                for repeat in range(self.repeats)
            ]
        return [task.result() for task in running]


async def _post_feedback(client: AsyncOpenAI, task: Task, run: Run) -> None:
    body = {"trajectory_id": run.trajectory_id, "answer": run.answer or "", "gold": task.gold}
    await client.post("/feedback", body=body, cast_to=object)


def record_of(world: World, task: Task, run: Run) -> TaskRecord:
    """Judge one run."""
    return TaskRecord(
        task_id=task.id,
        domain=task.domain,
        hops=len(task.hops),
        known=task.known,
        question=task.question,
        gold=task.gold,
        answer=run.answer,
        correct=is_correct(run.answer, task.gold),
        f1=squad_f1(run.answer or "", task.gold),
        cause=failure_cause(world, task, run),
        oracle_calls=task.oracle_calls,
        calls=tuple(judge_calls(task, run)),
        turns=len(run.responses),
        completion_tokens=sum(response.completion_tokens for response in run.responses),
        wasted_tokens=sum(response.wasted_tokens for response in run.responses),
        latency_seconds=sum(response.latency_seconds for response in run.responses),
        trajectory_id=run.trajectory_id,
        decisions=tuple(response.decision for response in run.responses),
    )


def _figures(records: Sequence[TaskRecord]) -> dict[str, Any]:
    right = sum(record.correct for record in records)
    calls = [len(record.calls) for record in records]
    latencies = [record.latency_seconds for record in records]
    causes = Counter(record.cause for record in records if record.cause is not None)
    return {
        "tasks": len(records),
        "accuracy": right / len(records) if records else 0.0,
        "accuracy_ci": list(wilson(right, len(records))),
        "f1": mean([record.f1 for record in records]),
        "calls_per_task": mean(calls),
        "calls_ci": list(mean_interval(calls)),
        "oracle_calls_per_task": mean([record.oracle_calls for record in records]),
        "needless_calls_per_task": mean(
            [sum(call.needless for call in record.calls) for record in records]
        ),
        "repeated_calls_per_task": mean(
            [sum(call.repeated for call in record.calls) for record in records]
        ),
        "completion_tokens": sum(record.completion_tokens for record in records),
        "wasted_tokens": sum(record.wasted_tokens for record in records),
        "wall_seconds": sum(latencies),
        "latency_seconds": {"p50": percentile(latencies, 0.5), "p95": percentile(latencies, 0.95)},
        "failures": dict(sorted(causes.items())),
    }

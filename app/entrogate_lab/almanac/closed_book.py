"""The closed-book examination: single facts asked without tools, known and unknown ones apart."""

import asyncio
import random
from typing import Any

from entrogate_lab.almanac.agent import Agent
from entrogate_lab.almanac.evaluate import connect
from entrogate_lab.almanac.intervals import wilson
from entrogate_lab.almanac.scoring import is_correct
from entrogate_lab.almanac.tasks import (
    DOMAINS,
    HeldOutCast,
    Task,
    draw_task,
)
from entrogate_lab.almanac.world import World, make_world


async def closed_book(
    base_url: str,
    *,
    model: str,
    questions: int,
    seed: int,
    concurrency: int,
    api_key: str | None = None,
    world_seed: int = 0,
) -> dict[str, Any]:
    """Accuracy on `questions` known and as many unknown one-hop held-out facts, with intervals.

    Returns `{"known": accuracy, "unknown": accuracy, "known_ci": […], "unknown_ci": […],
    "questions": …, "domains": {domain: {"known": …, "unknown": …}}}`.
    """
    world = make_world(world_seed)
    results: dict[bool, list[tuple[str, bool]]] = {}
    async with connect(base_url, api_key) as client:
        agent = Agent(client=client, model=model, source=world, max_turns=1)
        gate = asyncio.Semaphore(concurrency)

        async def one(task: Task) -> tuple[str, bool]:
            async with gate:
                run = await agent.run(task.question, tools=(), seed=f"{seed}-{task.id}")
            return task.domain, is_correct(run.answer, task.gold)

        for known in (True, False):
            asked = single_facts(world, seed, questions, known=known)
            results[known] = list(await asyncio.gather(*(one(task) for task in asked)))
    summary: dict[str, Any] = {"questions": questions, "domains": {}}
    for known, name in ((True, "known"), (False, "unknown")):
        marks = [right for _, right in results[known]]
        summary[name] = sum(marks) / len(marks)
        summary[f"{name}_ci"] = list(wilson(sum(marks), len(marks)))
        for domain in DOMAINS:
            within = [right for where, right in results[known] if where == domain]
            share = sum(within) / len(within) if within else None
            summary["domains"].setdefault(domain, {})[name] = share
    return summary


def single_facts(world: World, seed: int, count: int, *, known: bool) -> list[Task]:
    """`count` held-out one-hop tasks, all known to the model or all unknown, domains in turn."""
    rng = random.Random(f"almanac-closed-book-{world.seed}-{seed}-{known}")
    cast = HeldOutCast(world=world)
    tasks: list[Task] = []
    while len(tasks) < count:
        domain = DOMAINS[len(tasks) % len(DOMAINS)]
        task = draw_task(
            rng,
            world,
            world,
            cast,
            domain=domain,
            split="held-out",
            task_id=f"closed-{len(tasks)}",
        )
        if len(task.hops) == 1 and task.known == known:
            tasks.append(task)
    return tasks

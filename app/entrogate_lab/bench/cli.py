"""``entrogate bench``: the gateway's overhead, the gate against other ways to decide, and more."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from entrogate.errors import EntrogateError
from entrogate.ranges import FiniteRange

T = TypeVar("T")


@click.group()
def bench() -> None:
    """Measure the gateway's overhead, the gate's decisions and an export."""


@bench.command()
@click.option("--tasks", default=2000, show_default=True, help="Requests per target and scenario.")
@click.option("--rounds", default=10, show_default=True, help="Paired rounds to split them into.")
@click.option("--seed", default=0, show_default=True)
@click.option("--policy", default="observe", show_default=True, help="Policy of the gateway.")
@click.option("--base-url", help="A running gateway (its CPU stays unknown) instead of our own.")
@click.option("--direct-url", help="The server behind --base-url, to compare with.")
@click.option("--model", help="Model name to ask for; needed with --base-url.")
@click.option(
    "--engine-rounds",
    default=7,
    show_default=True,
    help="Paired rounds on a real vLLM, for the plugin inside it; 0 leaves them out.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here."
)
def overhead(
    *,
    tasks: int,
    rounds: int,
    seed: int,
    policy: str,
    base_url: str | None,
    direct_url: str | None,
    model: str | None,
    engine_rounds: int,
    json_file: Path | None,
) -> None:
    """Time and CPU that the gateway adds, next to no gateway and a bare pass-through."""
    from entrogate_lab.bench import engine
    from entrogate_lab.bench import overhead as measuring

    if base_url is None:
        context = measuring.own_targets(policy)
    elif model is None:
        raise EntrogateError("--base-url needs --model: the name that the server knows")
    else:
        given = [measuring.Target(name=measuring.ENTROGATE, url=_root(base_url))]
        if direct_url is not None:
            given.append(measuring.Target(name=measuring.DIRECT, url=_root(direct_url)))
        context = nullcontext((given, model))
    with context as (targets, name):
        found = _run(measuring.measure(targets, model=name, tasks=tasks, rounds=rounds, seed=seed))
    result = {"tasks": tasks, "rounds": rounds, "seed": seed, "policy": policy}
    result |= measuring.report(found)
    click.echo(measuring.table(result))
    if engine_rounds and base_url is None:
        with engine.servers() as servers:
            found_inside = _run(engine.measure(servers, rounds=engine_rounds, seed=seed))
        click.echo(engine.table(found_inside))
        result |= found_inside
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command()
@click.option("--tasks", default=500, show_default=True, help="Held-out tasks.")
@click.option("--seed", default=0, show_default=True, help="Which held-out tasks.")
@click.option("--policy", default="balanced", show_default=True, help="The policy to judge.")
@click.option("--model", "model_folder", type=click.Path(exists=True, path_type=Path))
@click.option("--world-seed", default=0, show_default=True, help="Seed the model was built with.")
@click.option("--base-url", help="A running vLLM with the model instead of our own.")
@click.option("--model-name", default="almanac", show_default=True, help="Its name there.")
@click.option("--concurrency", default=16, show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here."
)
def gate(
    *,
    tasks: int,
    seed: int,
    policy: str,
    model_folder: Path | None,
    world_seed: int,
    base_url: str | None,
    model_name: str,
    concurrency: int,
    json_file: Path | None,
) -> None:
    """A policy against the margin rule and random suppression, at as many calls."""
    from entrogate.upstream.model_folder import vocabulary_size
    from entrogate_lab.bench import gate as comparing

    model = model_folder or Path(__file__).parents[1] / "almanac" / "model"
    with ExitStack() as stack:
        folder = stack.enter_context(comparing.work_folder())
        upstream = base_url or stack.enter_context(comparing.vllm(model, folder))
        plan = comparing.Plan(
            upstream=_root(upstream),
            model=model_name,
            policy=policy,
            tasks=tasks,
            seed=seed,
            world_seed=world_seed,
            concurrency=concurrency,
            folder=folder,
            vocab_size=vocabulary_size(str(model)),
        )
        result = comparing.run(plan)
    click.echo(comparing.table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command()
@click.option("--share", type=FiniteRange(0, 1), default=0.2, show_default=True)
@click.option("--rounds", type=click.IntRange(0), default=20, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=128, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True)
@click.option("--tasks", type=click.IntRange(0), default=400, show_default=True)
@click.option(
    "--policy",
    default="balanced",
    show_default=True,
    help="Policy to predict by shadows and to enforce.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--base-url", help="A running vLLM with the bundled model (default: start one).")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here."
)
def shadows(*, base_url: str | None, json_file: Path | None, **options: Any) -> None:
    """Measure what shadows cost (--rounds) and whether they predict enforced runs (--tasks).

    0 leaves a part out.
    """
    from entrogate_lab.bench import gate as serving
    from entrogate_lab.bench import shadows as measuring

    with ExitStack() as stack:
        folder = stack.enter_context(serving.work_folder())
        model = Path(__file__).parents[1] / "almanac" / "model"
        upstream = base_url or stack.enter_context(serving.vllm(model, folder))
        plan = measuring.Plan(upstream=_root(upstream), model="almanac", folder=folder, **options)
        result = measuring.run(plan)
    click.echo(measuring.table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command()
@click.option("--trajectories", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here."
)
def export(*, trajectories: int, seed: int, json_file: Path | None) -> None:
    """Time, memory and disk of an export of synthetic trajectories."""
    from entrogate_lab.bench import export as measuring

    result = measuring.measure(trajectories, seed=seed, say=lambda text: click.echo(text, err=True))
    click.echo(measuring.table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command("viewer")
@click.option("--trajectories", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--store", "url", help="Default: an SQLite file in a temporary folder.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def viewer(*, trajectories: int, rounds: int, url: str | None, json_file: Path | None) -> None:
    """Milliseconds of the viewer's pages over synthetic trajectories."""
    from entrogate_lab.bench.viewer import measure

    result = measure(
        trajectories, rounds=rounds, url=url, say=lambda text: click.echo(text, err=True)
    )
    for page, (lowest, median, highest) in result["milliseconds"].items():
        click.echo(f"{page}: {median:.0f} ms ({lowest:.0f} to {highest:.0f})")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command("train")
@click.argument("data")
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--steps", type=click.IntRange(min=2), default=10, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def train(
    *, data: str, model: Path | None, steps: int, rounds: int, json_file: Path | None
) -> None:
    """Tokens a second of `entrogate train` beside TRL's SFTTrainer on the dataset DATA."""
    from entrogate_lab.bench.training import measure

    folder = model or Path(__file__).parents[1] / "almanac" / "model"
    result = measure(
        data,
        str(folder),
        steps=steps,
        rounds=rounds,
        say=lambda text: click.echo(text, err=True),
    )
    click.echo(
        "ratio to TRL (lowest, median, highest): {:.2f}, {:.2f}, {:.2f}".format(*result["ratio"])
    )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


@bench.command("fuse")
@click.option("--streams", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--length", type=click.IntRange(min=1001), default=2000, show_default=True)
@click.option("--max-loss", type=FiniteRange(0, 1, True, True), default=0.05)
@click.option("--delta", type=FiniteRange(0, 1, True, True), default=0.1)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def fuse(
    *,
    streams: int,
    length: int,
    max_loss: float,
    delta: float,
    seed: int,
    json_file: Path | None,
) -> None:
    """Simulate false alarms of the fuse, and the audits it takes to blow after a shift."""
    from entrogate_lab.bench.fuse import measure

    result = measure(
        streams=streams, length=length, limit=max_loss, delta=delta, seed=seed, say=click.echo
    )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _run(work: Coroutine[None, None, T]) -> T:
    if sys.platform == "win32":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)

"""`almanac build|ask|eval`."""

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import click

from entrogate.errors import EntrogateError
from entrogate_lab.almanac.promise.cli import promise
from entrogate_lab.almanac.tasks import Split

_BASE_URL = "http://127.0.0.1:8000/v1"


@click.group()
def almanac() -> None:
    """The Almanac, a model organism: build its model, ask it, evaluate it."""


almanac.add_command(promise)


@almanac.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--no-reasoning",
    is_flag=True,
    help="A model that calls or answers straight away, without reasoning before it.",
)
def build(*, seed: int, out: Path, threads: int, no_reasoning: bool) -> None:
    """Train tokenizer and model of a world from scratch; run again to go on after a stop."""
    try:
        from entrogate_lab.almanac.build import DIRECT_PLAN, Plan
        from entrogate_lab.almanac.build import build as build_model
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"building needs {error.name}: pip install 'entrogate[train]'"
        ) from error
    try:
        plan = DIRECT_PLAN if no_reasoning else Plan()
        build_model(seed, out, plan, threads, lambda line: click.echo(line, err=True))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on from here") from None


@almanac.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--explored", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--enforced", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--only", multiple=True, help="Only these of the steps; may be repeated.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def offpolicy(
    *,
    out: Path,
    explored: int,
    enforced: int,
    seed: int,
    concurrency: int,
    only: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Estimate four policies from an explored log, run them, and compare; goes on after a stop."""
    from entrogate.calibrate.evaluate_cli import shown
    from entrogate.store.read.show import table
    from entrogate_lab.almanac.offpolicy import Plan, as_json, compare, run

    plan = Plan(explored=explored, enforced=enforced, seed=seed, concurrency=concurrency)
    run(out, plan, lambda line: click.echo(line, err=True), only)
    rows = compare(out)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(rows), indent=2) + "\n")
    lines = [["policy", "metric", "estimated", "ran", "brackets", "difference holds 0"]]
    lines += [
        [
            row.policy,
            row.metric,
            shown(row.metric, row.estimated),
            shown(row.metric, row.ran),
            "yes" if row.brackets else "no",
            "yes" if row.agrees else "no",
        ]
        for row in rows
    ]
    for line in table(lines):
        click.echo(line)


@almanac.command()
@click.argument("question")
@click.option("--base-url", default=_BASE_URL, show_default=True)
@click.option("--model", default="almanac", show_default=True)
@click.option("--api-key", default=None)
@click.option("--world-seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--mode", default="observe", show_default=True)
def ask(
    *,
    question: str,
    base_url: str,
    model: str,
    api_key: str | None,
    world_seed: int,
    seed: int,
    mode: str,
) -> None:
    """Give QUESTION to the agent and print its run, turn by turn."""
    if not question.strip():
        raise click.UsageError("the question is empty")
    from entrogate_lab.almanac.agent import Agent, Executed, Response
    from entrogate_lab.almanac.evaluate import connect
    from entrogate_lab.almanac.tools import ALL_TOOLS
    from entrogate_lab.almanac.world import make_world

    def show(response: Response, made: list[Executed]) -> None:
        if response.reasoning:
            click.echo(f"  thinks  {response.reasoning.strip()}")
        if response.decision is not None:
            click.echo(f"  gate    {response.decision}")
        for call in made:
            click.echo(f"  calls   {call.name} {json.dumps(call.arguments)}")
            click.echo("  gets    " + call.result.replace("\n", "\n          "))

    async def run() -> str | None:
        async with connect(base_url, api_key) as client:
            agent = Agent(
                client=client,
                model=model,
                source=make_world(world_seed),
                headers={"x-entrogate-mode": mode},
            )
            done = await agent.run(question, tools=ALL_TOOLS, seed=str(seed), on_turn=show)
            return done.answer

    answer = _run(run())
    click.echo(f"answer    {answer}" if answer else "no answer: the turns ran out")


@almanac.command("eval")
@click.option("--base-url", default=_BASE_URL, show_default=True)
@click.option("--model", default="almanac", show_default=True)
@click.option("--api-key", default=None)
@click.option("--tasks", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Which held-out tasks.")
@click.option(
    "--world-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The seed that the served model was built with.",
)
@click.option("--modes", default="observe", show_default=True, help="Separated by commas.")
@click.option("--concurrency", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), default=None)
@click.option("--records", "records_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--closed-book", is_flag=True, help="Also examine without tools.")
@click.option("--feedback", is_flag=True, help="Post answer and gold to /v1/feedback.")
@click.option(
    "--split",
    type=click.Choice(["held-out", "train"]),
    default="held-out",
    show_default=True,
    help="Which tasks; those to train on are of the same kinds.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs of each task, for groups.",
)
@click.option("--body", help="Fields of every request as a JSON object, such as a logit_bias.")
@click.option(
    "--shift",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="The share of what the model knows that has changed since it was taught.",
)
def evaluation(
    *,
    base_url: str,
    model: str,
    api_key: str | None,
    tasks: int,
    seed: int,
    world_seed: int,
    modes: str,
    concurrency: int,
    json_file: Path | None,
    records_file: Path | None,
    closed_book: bool,
    feedback: bool,
    split: Split,
    repeats: int,
    body: str | None,
    shift: float,
) -> None:
    """Run tasks through the agent and report accuracy, calls, tokens and latency."""
    from entrogate_lab.almanac.closed_book import closed_book as examine
    from entrogate_lab.almanac.evaluate import evaluate

    wanted = _modes(modes)
    for path in (json_file, records_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"no folder {path.absolute().parent}")
    of_both: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "concurrency": concurrency,
        "api_key": api_key,
        "world_seed": world_seed,
    }
    result = _run(
        evaluate(
            base_url,
            **of_both,
            tasks=tasks,
            modes=wanted,
            progress=_Progress(),
            feedback=feedback,
            split=split,
            repeats=repeats,
            body=_json_object(body),
            shift=shift,
        )
    )
    if closed_book:
        result["closed_book"] = _run(examine(base_url, **of_both, questions=300))
    _write(result, json_file, records_file)
    _print(result)


def _modes(text: str) -> list[str]:
    """The modes that an option names, separated by commas."""
    from entrogate_lab.almanac.evaluate import MODES

    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in MODES:
            raise click.UsageError(f"no mode {name!r}; there are {', '.join(MODES)}")
    if not wanted:
        raise click.UsageError("name at least one mode")
    return wanted


@almanac.command("loop")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--tasks", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--repeats", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--eval-tasks", type=click.IntRange(min=1), default=100, show_default=True)
def loop(*, out: Path, rounds: int, tasks: int, repeats: int, eval_tasks: int) -> None:
    """The whole loop on the bundled model: roll out, export, train, publish, measured."""
    from entrogate_lab.almanac.looping import Plan, run

    plan = Plan(rounds=rounds, tasks=tasks, repeats=repeats, eval_tasks=eval_tasks)
    try:
        figures = run(plan, out, say=lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on from here") from None
    click.echo("round  calls per task  accuracy")
    for number, of in enumerate(figures):
        click.echo(f"{number:>5}{of['calls_per_task']:>16.2f}{of['accuracy']:>10.1%}")


@almanac.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seeds", default="0,1,2", show_default=True, help="Separated by commas.")
@click.option("--methods", help="Separated by commas (default: all).")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--tasks", type=click.IntRange(min=1), default=96, show_default=True)
@click.option("--repeats", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--eval-tasks", type=click.IntRange(min=1), default=300, show_default=True)
@click.argument("training", nargs=-1)
def experiment(
    *,
    out: Path,
    seeds: str,
    methods: str | None,
    rounds: int,
    tasks: int,
    repeats: int,
    eval_tasks: int,
    training: tuple[str, ...],
) -> None:
    """Compare rewards on the bundled model: roll out, train, evaluate; goes on after a stop.

    TRAINING are options of `entrogate train`, after ``--``, instead of the experiment's own.
    """
    from entrogate_lab.almanac.experiment import METHODS, TRAINING, Plan, run

    wanted = tuple(METHODS if methods is None else (m.strip() for m in methods.split(",")))
    for name in wanted:
        if name not in METHODS:
            raise click.UsageError(f"no method {name!r}; there are {', '.join(METHODS)}")
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds is {seeds!r}; want numbers, as in 0,1,2") from None
    plan = Plan(
        seeds=numbers,
        methods=wanted,
        rounds=rounds,
        tasks=tasks,
        repeats=repeats,
        eval_tasks=eval_tasks,
        training=training or TRAINING,
    )
    try:
        run(plan, out, say=lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on from here") from None


@almanac.command()
@click.argument("experiment", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--docs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Where results.md, results.json and images/ go.",
)
def results(experiment: Path, docs: Path) -> None:
    """Write the tables and plots of the EXPERIMENT in a folder."""
    from entrogate_lab.almanac.results import collect
    from entrogate_lab.almanac.results_page import write

    write(collect(experiment), docs)
    click.echo(f"{docs}/results.md, {docs}/results.json")


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise click.UsageError(f"--body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError("--body is no JSON object")
    return cast("dict[str, Any]", fields)


def _write(result: dict[str, Any], json_file: Path | None, records_file: Path | None) -> None:
    """The figures to one file, the runs that they are of to another; takes these out of them."""
    records = result.pop("records")
    if records_file is not None:
        records_file.write_text(json.dumps(records, indent=1) + "\n")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


class _Progress:
    """A line on stderr that is rewritten twice a second at most."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, mode: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self._last < 0.5:
            return
        self._last = now
        click.echo(f"\r{mode}: {done}/{total} tasks", err=True, nl=done == total)
        sys.stderr.flush()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except EntrogateError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("stopped") from None


def _print(result: dict[str, Any]) -> None:
    head = ("", "tasks", "accuracy", "95 %", "calls", "oracle", "needless", "repeated", "p50 s")
    click.echo("{:<16}{:>6}{:>10}{:>16}{:>7}{:>8}{:>10}{:>10}{:>8}".format(*head))
    for mode, total in result["modes"].items():
        rows = [(mode, total), *((f"  {name}", row) for name, row in total["domains"].items())]
        for name, row in rows:
            low, high = row["accuracy_ci"]
            click.echo(
                f"{name:<16}{row['tasks']:>6}{row['accuracy']:>10.3f}{low:>9.3f}–{high:.3f} "
                f"{row['calls_per_task']:>7.2f}{row['oracle_calls_per_task']:>8.2f}"
                f"{row['needless_calls_per_task']:>10.2f}{row['repeated_calls_per_task']:>10.2f}"
                f"{row['latency_seconds']['p50']:>8.2f}"
            )
        causes = ", ".join(f"{name} {count}" for name, count in total["failures"].items())
        click.echo(f"  failures: {causes or 'none'}")
        one_hop = total["one_hop_facts_accuracy"]
        if one_hop is not None:
            click.echo(f"  one-hop facts with tools: {one_hop:.3f}")
    if "closed_book" in result:
        book = result["closed_book"]
        click.echo(f"closed book: known {book['known']:.3f}, unknown {book['unknown']:.3f}")

"""`almanac build|ask|eval`."""

import json
from pathlib import Path

import click

from entrogate.extras import install_command
from entrogate_lab.almanac.eval_cli import BASE_URL, evaluation, run_to_end
from entrogate_lab.almanac.offpolicy_cli import offpolicy
from entrogate_lab.almanac.promise.cli import promise


@click.group()
def almanac() -> None:
    """The Almanac, a model organism: build its model, ask it, evaluate it."""


almanac.add_command(promise)
almanac.add_command(evaluation)
almanac.add_command(offpolicy)


@almanac.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--no-reasoning",
    is_flag=True,
    help="A model that calls tools or answers without reasoning.",
)
def build(*, seed: int, out: Path, threads: int, no_reasoning: bool) -> None:
    """Train tokenizer and model of a world from scratch; run it again to continue after a stop."""
    try:
        from entrogate_lab.almanac.build import DIRECT_PLAN, Plan
        from entrogate_lab.almanac.build import build as build_model
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"building needs {error.name}: {install_command('train')}"
        ) from error
    try:
        plan = DIRECT_PLAN if no_reasoning else Plan()
        build_model(seed, out, plan, threads, lambda line: click.echo(line, err=True))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on from here") from None


@almanac.command()
@click.argument("question")
@click.option("--base-url", default=BASE_URL, show_default=True)
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

    answer = run_to_end(run())
    click.echo(f"answer    {answer}" if answer else "no answer: the turns ran out")


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

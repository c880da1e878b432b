"""`almanac promise collect|signals|hold|enforce|fuse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entrogate.ranges import FiniteRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrogate.calibrate.paired import Sample
    from entrogate.calibrate.result import Options
    from entrogate.gate.schema import Policy

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_JSON = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All figures."
)
_POLICY = click.option(
    "--policy", default="balanced", show_default=True, help="A bundled name or a file."
)


_SHARE = FiniteRange(0.0, 1.0, min_open=True, max_open=True)


@click.group()
def promise() -> None:
    """Test whether calibrated policies keep their promise, on a real server."""


@promise.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--model", type=_FOLDER, help="A folder of `almanac build` (default: the bundled).")
@click.option("--tasks", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option("--seed", type=int, default=100, show_default=True, help="Which held-out tasks.")
@_POLICY
def collect(*, out: Path, model: Path | None, tasks: int, seed: int, policy: str) -> None:
    """Run tasks in mode observe, with a shadow of every turn with a call and gold as feedback."""
    from entrogate_lab.almanac.demo import BUNDLED_MODEL
    from entrogate_lab.almanac.promise.collecting import Run, run, world_seed_of

    folder = model or BUNDLED_MODEL
    wanted = Run(
        model=str(folder),
        world_seed=world_seed_of(folder),
        tasks=tasks,
        seed=seed,
        policy=policy,
        mode="observe",
    )
    summary = run(wanted, out, shadows=True, say=_say)
    click.echo(f"accuracy {summary['accuracy']:.1%}, {summary['calls_per_task']:.2f} calls a task")


@promise.command()
@click.argument("log", type=_FOLDER)
@_POLICY
@_JSON
def signals(*, log: Path, policy: str, json_file: Path | None) -> None:
    """Rank the signals by how well they predict that the answer without the call is right."""
    from entrogate.calibrate.result import Options
    from entrogate_lab.almanac.promise.ranking import rank

    base = _policy(policy)
    ranked = rank(_samples(log, base), base, Options())
    click.echo(f"{'signal':<28}{'AUC':>7}{'95 %':>17}{'certified':>11}{'saves':>8}{'loses':>8}")
    for row in ranked:
        low, high = row["auc_ci"]
        threshold = row["threshold"]
        click.echo(
            f"{row['signal']:<28}{row['auc']:>7.3f}{low:>9.3f}–{high:.3f} "
            f"{'none' if threshold is None else f'{threshold:.4g}':>11}"
            f"{row['saved']:>8.1%}{row['loss']:>8.1%}"
        )
    _write(json_file, {"signals": ranked})


@promise.command()
@click.argument("logs", type=_FOLDER, nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--size", type=click.IntRange(min=2), default=600, show_default=True)
@click.option("--max-loss", type=_SHARE, default=0.05, show_default=True)
@click.option("--delta", type=_SHARE, default=0.1, show_default=True)
@click.option(
    "--draw", type=click.Choice(["population", "split"]), default="population", show_default=True
)
@click.option("--signals", "names", help="Separated by commas (default: all).")
@click.option(
    "--judge", "judges", type=_FOLDER, multiple=True, help="Judge on these logs, not on LOGS."
)
@click.option("--seed", type=int, default=0, show_default=True)
@_POLICY
@_JSON
def hold(
    *,
    logs: tuple[Path, ...],
    judges: tuple[Path, ...],
    rounds: int,
    size: int,
    max_loss: float,
    delta: float,
    draw: str,
    names: str | None,
    seed: int,
    policy: str,
    json_file: Path | None,
) -> None:
    """Calibrate many times on samples of the LOGS and count how many promises are broken."""
    from entrogate_lab.almanac.promise.holding import Draw
    from entrogate_lab.almanac.promise.holding import hold as hold_all

    base = _policy(policy)
    pool, fresh = ([each for log in of for each in _samples(log, base)] for of in (logs, judges))

    def report(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            _say(f"  {done}/{total} calibrations")

    try:
        found = hold_all(
            pool,
            base,
            _options(names, max_loss, delta),
            draw=Draw(draw),
            size=size,
            rounds=rounds,
            seed=seed,
            report=report,
            fresh=fresh or None,
        ).summary()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(_held(found))
    _write(json_file, found)


@promise.command()
@click.argument("log", type=_FOLDER)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@_POLICY
@_JSON
def enforce(*, log: Path, out: Path, policy: str, json_file: Path | None) -> None:
    """Enforce a policy on the tasks of LOG; compare with LOG and with what its shadows predict."""
    from dataclasses import replace

    from entrogate_lab.almanac.promise.collecting import read_records, read_run, run
    from entrogate_lab.almanac.promise.comparing import compare

    rules = _policy(policy)
    wanted = replace(read_run(log), policy=policy, mode="enforce")
    run(wanted, out, shadows=False, say=_say)
    base = _policy("balanced")
    found = compare(rules, _samples(log, base), read_records(log), read_records(out))
    accuracy, calls = found["accuracy"], found["calls"]
    click.echo(
        f"accuracy: observed {accuracy['observed']:.1%}, predicted by shadows "
        f"{accuracy['predicted']:.1%}, enforced {accuracy['enforced']:.1%}\n"
        f"  enforced - observed {_interval(found['accuracy_against_observed'])}\n"
        f"  enforced - predicted {_interval(found['accuracy_against_predicted'])}\n"
        f"calls a task: observed {calls['observed']:.2f}, enforced {calls['enforced']:.2f} "
        f"({calls['saved']:.1%} saved)\n"
        f"lost {found['lost']:.1%}, gained {found['gained']:.1%} of {found['tasks']} tasks"
    )
    _write(json_file, found)


@promise.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--policy", required=True, help="A file with an audit, as `calibrate` writes it.")
@click.option("--model", type=_FOLDER, help="A folder of `almanac build` (default: the bundled).")
@click.option("--tasks", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--seed", type=int, default=110, show_default=True, help="Which held-out tasks.")
@click.option(
    "--share", type=FiniteRange(0.0, 1.0, min_open=True, max_open=True), default=0.3,
    show_default=True, help="Of the suppressed turns that are audited.",
)  # fmt: skip
@click.option(
    "--shift", type=FiniteRange(0.0, 1.0), default=0.5, show_default=True,
    help="The share of what the model knows that changes.",
)  # fmt: skip
def fuse(*, out: Path, model: Path | None, **given: Any) -> None:
    """Enforce a calibrated policy while the world is as it was, then while it has changed."""
    from entrogate_lab.almanac.demo import BUNDLED_MODEL
    from entrogate_lab.almanac.promise.collecting import world_seed_of
    from entrogate_lab.almanac.promise.shifting import Plan, run

    folder = model or BUNDLED_MODEL
    found = run(Plan(model=folder, world_seed=world_seed_of(folder), **given), out, say=_say)
    for world in found["worlds"]:
        click.echo(
            f"{world['shift']:.0%} changed: {world['tasks']} tasks, accuracy "
            f"{world['accuracy']:.1%}, {world['calls_per_task']:.2f} calls a task; blown: "
            f"{', '.join(f['tool'] for f in world['fuses'] if f['state'] == 'blown') or 'none'}"
        )
    click.echo(f"limit {found['max_loss']:.4g}; lost of the judged audits:")
    for each in found["tools"]:
        before = each["losses"] - each["shifted_losses"], each["audits"] - each["shifted"]
        click.echo(
            f"  {each['tool']:<12}{before[0]} of {before[1]}, changed "
            f"{each['shifted_losses']} of {each['shifted']}; "
            + ("does not blow" if each["delay"] is None else f"blows at {each['delay']} after it")
        )


def _held(found: dict[str, Any]) -> str:
    low, high = found["exceeded_ci"]
    share = found["exceeded"] / found["calibrations"]
    return (
        f"{found['calibrations']} calibrations on {found['size']} of {found['pool']} trajectories, "
        f"{found['certified']} certified\n"
        f"lost more than {found['max_loss']:.0%}: {found['exceeded']} "
        f"({share:.1%}, 95 % {low:.1%} to {high:.1%}; allowed {found['delta']:.0%})\n"
        f"P(so many or more | {found['delta']:.0%}) = {found['p_value']:.3f}: the promise "
        f"{'holds' if found['holds'] else 'DOES NOT HOLD'}\n"
        f"lost {found['loss']['mean']:.1%} (at most {found['loss']['max']:.1%}), "
        f"gained {found['gain']:.1%}, calls saved {found['saved']:.1%}\n"
        f"signals: {', '.join(f'{name} {count}' for name, count in found['signals'].items())}"
    )


def _interval(found: dict[str, Any]) -> str:
    low, high = found["ci"]
    return f"{found['mean']:+.1%} [{low:+.1%}, {high:+.1%}] on {found['n']} tasks"


def _samples(log: Path, base: Policy) -> Sequence[Sample]:
    from entrogate_lab.almanac.promise.reading import read_samples

    return read_samples(log, base)


def _policy(name: str) -> Policy:
    from entrogate.gate.policy import load_policy

    return load_policy(name)


def _options(names: str | None, max_loss: float, delta: float) -> Options:
    from entrogate.calibrate.result import SIGNALS, Options
    from entrogate.gate.schema import Statistic

    try:
        chosen = tuple(Statistic(each.strip()) for each in names.split(",")) if names else SIGNALS
        return Options(max_loss=max_loss, delta=delta, signals=chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _say(text: str) -> None:
    click.echo(text, err=True)


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")

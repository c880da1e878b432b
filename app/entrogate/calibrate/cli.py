"""`entrogate calibrate`: from a store to a policy with a promise."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from entrogate.calibrate.choose import calibrate as run_calibration
from entrogate.calibrate.empty import main_reason
from entrogate.calibrate.paired import one_per_task
from entrogate.calibrate.policy_file import policy_yaml, with_calibration, write_whole
from entrogate.calibrate.result import SIGNALS, Calibrated, Options
from entrogate.calibrate.samples import LeftOut, Log, Picked, read_log
from entrogate.calibrate.tables import as_json, left_out, lines
from entrogate.errors import ConfigError
from entrogate.extras import install_command
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Policy, Statistic
from entrogate.ranges import FiniteRange
from entrogate.risk.ltt import samples_needed
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.options import opened, store_option
from entrogate.store.read.paired import PairedTrajectory
from entrogate.store.store import Store
from entrogate.types import Estimator
from entrogate.wire.body import to_json

NOTHING_CERTIFIED = 3
"""Exit status where no threshold keeps the promise."""

_SHARE = FiniteRange(0.0, 1.0, min_open=True, max_open=True)


def _signals(
    _context: click.Context, _option: click.Parameter, value: str
) -> tuple[Statistic, ...]:
    """Names, ``draft`` for all draft signals, or ``all``; a minus before a name excludes it."""
    chosen: list[Statistic] = []
    for name in (each.strip() for each in value.split(",")):
        bare = name.removeprefix("-")
        found = [
            each
            for each in SIGNALS
            if bare in ("all", each.value) or (bare == "draft" and each.is_draft)
        ]
        if not found:
            known = ", ".join(["all", "draft", *(each.value for each in SIGNALS)])
            raise click.BadParameter(f"no signal {bare!r}; known: {known}")
        if name.startswith("-"):
            chosen = [each for each in chosen or SIGNALS if each not in found]
        else:
            chosen += [each for each in found if each not in chosen]
    if not chosen:
        raise click.BadParameter("no signal is left")
    return tuple(chosen)


@click.command()
@store_option
@click.option(
    "--base-policy",
    default="observe",
    show_default=True,
    help="Bundled policy or YAML file with the tools that may be gated and all other rules.",
)
@click.option(
    "--max-loss",
    type=_SHARE,
    default=0.05,
    show_default=True,
    help="ε: largest share of trajectories right with and wrong without a call.",
)
@click.option(
    "--delta",
    type=_SHARE,
    default=0.1,
    show_default=True,
    help="δ: the promise holds with confidence 1 − δ.",
)
@click.option(
    "--per-tool/--pooled",
    default=False,
    show_default=True,
    help="A threshold for each tool, or one for all.",
)
@click.option(
    "--signals",
    default="all",
    show_default=True,
    callback=_signals,
    help="Separated by commas; 'draft': all draft signals; a minus excludes.",
)
@click.option(
    "--draft-tokens",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Length of a draft, in tokens.",
)
@click.option("--model", help="Only trajectories of this model.")
@click.option("--weights", help="Only this weight version ('base': none was published).")
@click.option("--tokenizer", help="Only the tokenizer with this hash.")
@click.option(
    "--estimator",
    type=click.Choice([each.value for each in Estimator]),
    help="Only trajectories whose entropies were measured in this way.",
)
@click.option("--tenant", help="Only this tenant ('': the default tenant).")
@click.option(
    "--since",
    type=click.DateTime(),
    help="Only trajectories that began at or after this time (UTC).",
)
@click.option(
    "--until", type=click.DateTime(), help="Only trajectories that began before this time (UTC)."
)
@click.option("--all-of-task", is_flag=True, help="Use every trajectory of a task instead of one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Policy file to write."
)
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="HTML report to write."
)
@click.option("--overwrite", is_flag=True, help="Replace the files of --out and --report.")
@click.option("--json", "as_json_", is_flag=True, help="Print JSON instead of the table.")
@click.pass_context
def calibrate(context: click.Context, url: str, **given: Any) -> None:
    """Choose a signal and certify a threshold from stored trajectories with scored shadows.

    Exit status 3: nothing can be certified; the output says how many more trajectories are needed.
    """
    if not given["overwrite"]:
        _check_new(given["out"], given["report"])
    if Statistic.LEARNED in given["signals"]:
        _check_extra()
    base = load_policy(given["base_policy"])
    options = Options(
        max_loss=given["max_loss"],
        delta=given["delta"],
        per_tool=given["per_tool"],
        signals=given["signals"],
        draft_tokens=given["draft_tokens"],
        seed=given["seed"],
    )
    with opened(url) as store:
        log = _log(store, base, given)
    if not log.samples:
        filters = [f"--{name}" for name in ("tenant", "since", "until") if given[name] is not None]
        reason = main_reason(log, base, _picked(given), filters)
        _refuse_empty(log, options, reason, as_json_=given["as_json_"])
        context.exit(NOTHING_CERTIFIED)
    try:
        found = run_calibration(log.samples, base, options)
    except ValueError as error:
        raise ConfigError(f"{error}; name it with --base-policy FILE") from None
    _write(found, log, given["out"], given["report"])
    if given["as_json_"]:
        click.echo(to_json(as_json(found, log)).decode())
    else:
        _say(found, log, given["out"], base)
    if found.policy is None:
        context.exit(NOTHING_CERTIFIED)


def _check_new(*files: Path | None) -> None:
    """Before the work, not after it. Raises ConfigError for a file that exists."""
    for file in files:
        if file is not None and file.exists():
            raise ConfigError(f"{file} exists already: name a new one, or add --overwrite")


def _check_extra() -> None:
    """Now, not after minutes of reading. Raises ConfigError where the extra is not installed."""
    if find_spec("sklearn") is None:
        raise ConfigError(
            f"the signal 'learned' needs scikit-learn: {install_command('calibrate')};"
            " without it: --signals all,-learned"
        )


def _log(store: Store, base: Policy, given: dict[str, Any]) -> Log:
    wanted = TrajectoryFilter(
        tenant=given["tenant"], since=_epoch(given["since"]), until=_epoch(given["until"])
    )
    picked = _picked(given)
    stored: Iterator[PairedTrajectory] = store.iter_paired(wanted)
    log = read_log(stored, base, draft_tokens=given["draft_tokens"], picked=picked)
    if given["all_of_task"]:
        return log
    kept = one_per_task(log.samples, given["seed"])
    log.left_out[LeftOut.SAME_TASK] += len(log.samples) - len(kept)
    return replace(log, samples=kept, left_out=+log.left_out)


def _picked(given: dict[str, Any]) -> Picked:
    estimator = given["estimator"]
    return Picked(
        model=given["model"],
        weights=given["weights"],
        tokenizer=given["tokenizer"],
        estimator=None if estimator is None else Estimator(estimator),
    )


def _epoch(moment: datetime.datetime | None) -> float | None:
    return None if moment is None else moment.replace(tzinfo=datetime.UTC).timestamp()


def _refuse_empty(log: Log, options: Options, reason: str, *, as_json_: bool) -> None:
    needed = samples_needed(0, 0, max_loss=options.max_loss, delta=options.delta) or 0
    least = round(needed / (1.0 - options.chosen_on))
    if as_json_:
        nothing = Calibrated(options=options, n=0, rows=(), policy=None, total=None, certified_on=0)
        click.echo(to_json(as_json(nothing, log) | {"needs": least, "reason": reason}).decode())
    click.echo(
        f"nothing to calibrate on: {reason}; at least {least} trajectories with an outcome and a"
        " scored shadow of each call are needed (docs/calibration.md)",
        err=True,
    )
    for line in left_out(log):
        click.echo(line, err=True)


def _write(found: Calibrated, log: Log, out: Path | None, report: Path | None) -> None:
    if report is not None:
        from entrogate.calibrate.report import report_html

        write_whole(report, report_html(found, log))
    if out is not None and found.policy is not None:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        policy = with_calibration(found, log, today)
        write_whole(out, policy_yaml(policy, found))


def _say(found: Calibrated, log: Log, out: Path | None, base: Policy) -> None:
    for line in lines(found, log):
        click.echo(line)
    click.echo("")
    if found.policy is None:
        more = "" if found.needs is None else f"; about {found.needs} more trajectories are needed"
        click.echo(f"nothing can be certified{more}", err=True)
    elif out is None:
        click.echo("write the policy with --out FILE")
    else:
        click.echo(f"written: {out} (mode {base.mode.value})")

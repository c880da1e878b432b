"""``entrogate export``, ``label`` and ``convert``: datasets, what they are worth, other formats."""

from __future__ import annotations

import sys
import time
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from entrogate.label.credit import Baseline
from entrogate.label.rewards import RewardOptions, Rule
from entrogate.label.worth import DenseName, Labelling, RewardName
from entrogate.model_hashes import hashes_of
from entrogate.ranges import FiniteRange
from entrogate.store.filters import TrajectoryFilter
from entrogate.store.options import opened, store_option
from entrogate.store.read.settled import Settling

# What needs the extra `export` is imported by the commands: their help works without it.
if TYPE_CHECKING:
    from entrogate.export.convert import Conversion
    from entrogate.export.exporter import Summary

_FORMATS = ("trl-sft", "trl-async", "verl", "jsonl")
_MODES = ["observe", "enforce", "explore"]
_NATIVE = "native"


def _default(name: str) -> dict[str, Any]:
    """An option's default is what training does."""
    return {"default": getattr(Labelling(), name), "show_default": True}


@click.command()
@store_option
@click.option("--to", "target", required=True, help="Folder, or any URL that fsspec knows.")
@click.option(
    "--format",
    "format_",
    type=click.Choice([_NATIVE, *_FORMATS]),
    default=_NATIVE,
    show_default=True,
    help="The dataset, or one new file of it for another trainer.",
)
@click.option("--every", type=FiniteRange(min=1), help="Go on, with so many seconds between.")
@click.option("--check", is_flag=True, help="Only see whether store and target can be used.")
@click.option("--erase", is_flag=True, help="Take out what was erased in the store; add nothing.")
@click.option(
    "--settle",
    type=FiniteRange(),
    default=30.0,
    show_default=True,
    help="Quiet seconds before it is final.",
)
@click.option(
    "--patience",
    type=FiniteRange(),
    default=3600.0,
    show_default=True,
    help="Seconds to wait for an outcome.",
)
@click.option("--tenant", help="Only this tenant's ('': the default one's).")
@click.option("--task", "task_id", help="Only this task.")
@click.option("--model", help="Only this model.")
@click.option("--mode", type=click.Choice(_MODES), help="Only this mode of the gate.")
@click.option("--weight-version", help="Only trajectories with turns of these weights.")
@click.option("--since", type=click.DateTime(), help="Only those begun then or later (UTC).")
@click.option("--until", type=click.DateTime(), help="Only those begun before (UTC).")
@click.option("--outcome-only", is_flag=True, help="Only with an outcome.")
@click.option("--incomplete", is_flag=True, help="Those with a gap in their capture, too.")
@click.option(
    "--model-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the served model, for what was recorded before its tokenizer was noted.",
)
def export(
    *,
    url: str,
    target: str,
    format_: str,
    every: float | None,
    check: bool,
    settle: float,
    patience: float,
    model_folder: Path | None,
    incomplete: bool,
    outcome_only: bool,
    erase: bool,
    **filters: Any,
) -> None:
    """Add to a dataset every trajectory that has settled since the last time, each exactly once.

    With another --format: all that has settled, in one new file.
    """
    from entrogate.export.convert import convert as convert_dataset
    from entrogate.export.dataset import Dataset, check_writable
    from entrogate.export.exporter import export_settled
    from entrogate.export.targets import appears_whole

    _check_format(format_, every)
    if erase:
        if format_ != _NATIVE or every is not None or check:
            raise click.UsageError("--erase rewrites a dataset and does nothing else")
        _take_out_erased(url, target)
        return
    settling = _settling(settle, patience)
    wanted = _wanted(filters, incomplete=incomplete, outcome_only=outcome_only)
    hashes = hashes_of(model_folder) if model_folder is not None else None
    with opened(url) as store:

        def add_to(folder: str) -> None:
            with Dataset.writing(folder) as dataset:
                done = export_settled(
                    store, dataset, settling=settling, wanted=wanted, hashes=hashes, progress=_tell
                )
            _tell(done)

        if check:
            check_writable(target)
            return
        if format_ != _NATIVE:
            with appears_whole(target) as file, TemporaryDirectory(prefix="entrogate-") as folder:
                add_to(folder)
                _tell_converted(convert_dataset(Dataset.reading(folder), format_, file), target)
            return
        add_to(target)
        while every is not None:
            time.sleep(every)
            add_to(target)


def _check_format(name: str, every: float | None) -> None:
    if name != _NATIVE and every is not None:
        raise click.UsageError(f"--every adds to a dataset, and --format {name} makes a new file")
    if name == "trl-async":
        raise click.UsageError(
            "trl-async needs advantages, and those need the whole dataset: export natively, then"
            " `entrogate label` and `entrogate convert`"
        )


def _take_out_erased(url: str, target: str) -> None:
    """Rewrite a dataset without what was erased in the store."""
    from entrogate.export.dataset import Dataset
    from entrogate.export.erasing import note_erased, take_out

    with opened(url) as store, Dataset.writing(target) as dataset:
        note_erased(store, dataset)
        taken = take_out(dataset)
    sys.stderr.write(
        f"erase: {taken.trajectories} trajectories, {taken.rows} rows taken out,"
        f" {taken.parts} parts rewritten\n"
    )


def _settling(settle: float, patience: float) -> Settling:
    try:
        return Settling(quiet=settle, patience=patience)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _wanted(filters: dict[str, Any], *, incomplete: bool, outcome_only: bool) -> TrajectoryFilter:
    """The filter that the options make up; their times are UTC without saying so."""
    moments = {
        name: None if filters[name] is None else filters[name].replace(tzinfo=UTC).timestamp()
        for name in ("since", "until")
    }
    return TrajectoryFilter(
        complete=None if incomplete else True,
        has_outcome=True if outcome_only else None,
        **filters | moments,
    )


@click.command()
@click.argument("dataset")
@click.option("--format", "format_", type=click.Choice(_FORMATS), required=True)
@click.option("--to", "target", required=True, help="The new file; any URL that fsspec knows.")
def convert(*, dataset: str, format_: str, target: str) -> None:
    """Write DATASET as one file in the format of another trainer."""
    from entrogate.export.convert import convert as convert_dataset
    from entrogate.export.dataset import Dataset
    from entrogate.export.targets import appears_whole

    source = Dataset.reading(dataset)
    with appears_whole(target) as file:
        done = convert_dataset(source, format_, file)
    _tell_converted(done, target)


@click.command()
@click.argument("dataset")
@click.option("--to", "target", required=True, help="The new dataset; any URL that fsspec knows.")
@click.option("--reward", type=click.Choice(get_args(RewardName)), **_default("reward"))
@click.option(
    "--baseline",
    type=click.Choice([*get_args(Baseline), "none"]),
    help="What a reward is compared with in its group; none keeps it as it is.",
    **_default("baseline"),
)
@click.option(
    "--dense",
    type=click.Choice(get_args(DenseName)),
    help="The paper's dense advantage, or one that never turns the outcome's sign.",
    **_default("dense"),
)
@click.option(
    "--alpha",
    type=FiniteRange(min=0),
    default=RewardOptions().alpha,
    show_default=True,
    help="Weight of I_k in the dense reward.",
)
@click.option(
    "--min-reduction",
    type=FiniteRange(min=0),
    default=RewardOptions().min_reduction,
    show_default=True,
    help="Nats by which a call has to lower the entropy for I_k = 1.",
)
@click.option(
    "--no-calls",
    type=click.Choice(get_args(Rule)),
    default=RewardOptions().no_calls,
    show_default=True,
    help="Sparse reward of a trajectory without calls.",
)
def label(
    *,
    dataset: str,
    target: str,
    reward: RewardName,
    baseline: str,
    dense: DenseName,
    alpha: float,
    min_reduction: float,
    no_calls: Rule,
) -> None:
    """Copy DATASET with rewards and advantages filled in, as `entrogate train` computes them."""
    from entrogate.export.dataset import Dataset
    from entrogate.export.label_copy import label_dataset
    from entrogate.export.targets import appears_whole

    labelling = Labelling(
        reward=reward,
        baseline=None if baseline == "none" else cast("Baseline", baseline),
        options=RewardOptions(alpha=alpha, min_reduction=min_reduction, no_calls=no_calls),
        dense=dense,
    )
    source = Dataset.reading(dataset)
    with appears_whole(target) as folder:
        report = label_dataset(source, folder, labelling)
    skipped = "".join(f", {count} × {why}" for why, count in sorted(report.skipped.items()))
    sys.stderr.write(
        f"label: {report.labelled} trajectories with advantages, of {report.groups} groups"
        f"{skipped and '; without' + skipped[1:]}\n"
    )


def _tell(summary: Summary) -> None:
    late = f", {summary.late} changed after they had been exported" if summary.late else ""
    sys.stderr.write(
        f"export: {summary.trajectories} trajectories, {summary.rows} rows, "
        f"{summary.parts} parts{late}\n"
    )


def _tell_converted(done: Conversion, target: str) -> None:
    sys.stderr.write(f"convert: {done.made} rows of {done.read} in {target}\n")

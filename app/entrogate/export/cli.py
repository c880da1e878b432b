"""``entrogate export``: settled trajectories to Parquet, once or again and again."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import click

from entrogate.errors import ConfigError
from entrogate.export.dataset import Dataset
from entrogate.export.exporter import Summary, export_settled
from entrogate.export.sequences import ModelHashes
from entrogate.settings import StoreSettings
from entrogate.store import Store
from entrogate.store.cli import store_option
from entrogate.store.settled import Settling, Wanted

_MODES = ["observe", "enforce", "explore"]


@click.command()
@store_option
@click.option("--to", "target", required=True, help="Folder, or any URL that fsspec knows.")
@click.option("--every", type=click.FloatRange(min=1), help="Go on, with so many seconds between.")
@click.option("--settle", default=30.0, show_default=True, help="Quiet seconds before it is final.")
@click.option(
    "--patience", default=3600.0, show_default=True, help="Seconds to wait for an outcome."
)
@click.option("--model", help="Only this model.")
@click.option("--mode", type=click.Choice(_MODES), help="Only this mode of the gate.")
@click.option("--weight-version", help="Only trajectories with turns of these weights.")
@click.option("--since", type=click.DateTime(), help="Only those begun then or later (UTC).")
@click.option("--until", type=click.DateTime(), help="Only those begun before (UTC).")
@click.option("--outcome-only", "with_outcome_only", is_flag=True, help="Only with an outcome.")
@click.option("--incomplete", is_flag=True, help="Those with a gap in their capture, too.")
@click.option(
    "--model-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the served model: its tokenizer is noted, so that a trainer can check it.",
)
def export(
    *,
    url: str,
    target: str,
    every: float | None,
    settle: float,
    patience: float,
    model_folder: Path | None,
    incomplete: bool,
    **filters: Any,
) -> None:
    """Add to a dataset every trajectory that has settled since the last time, each exactly once."""
    try:
        settling = Settling(quiet=settle, patience=patience)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for name in ("since", "until"):
        moment = filters[name]
        filters[name] = None if moment is None else moment.timestamp()
    wanted = Wanted(complete_only=not incomplete, **filters)
    hashes = hashes_of(model_folder) if model_folder is not None else ModelHashes()
    store = Store.open(StoreSettings(url=url), read_only=True)
    try:
        while True:
            with Dataset.writing(target) as dataset:
                summary = export_settled(
                    store,
                    dataset,
                    settling=settling,
                    wanted=wanted,
                    hashes=hashes,
                    progress=_tell,
                )
            _tell(summary)
            if every is None:
                return
            time.sleep(every)
    finally:
        asyncio.run(store.aclose())


def hashes_of(folder: Path) -> ModelHashes:
    """What identifies the tokenizer and the chat template of a model folder."""
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(f"{folder} has no tokenizer.json")
    template = b""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = (folder / name).read_bytes()
            break
    return ModelHashes(
        tokenizer=hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16],
        chat_template=hashlib.sha256(template).hexdigest()[:16],
    )


def _tell(summary: Summary) -> None:
    late = f", {summary.late} changed after they had been exported" if summary.late else ""
    sys.stderr.write(
        f"export: {summary.trajectories} trajectories, {summary.rows} rows, "
        f"{summary.parts} parts{late}\n"
    )

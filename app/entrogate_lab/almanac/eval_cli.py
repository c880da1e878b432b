"""`almanac eval`: runs tasks through the agent and prints a table of the results."""

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import click

from entrogate.errors import EntrogateError
from entrogate.ranges import FiniteRange
from entrogate_lab.almanac.tasks import Split

BASE_URL = "http://127.0.0.1:8000/v1"


@click.command("eval")
@click.option("--base-url", default=BASE_URL, show_default=True)
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
    type=FiniteRange(0.0, 1.0),
    default=0.0,
    show_default=True,
    help="Share of the known facts that have changed since training.",
)
def evaluation(
    *,
    base_url: str,
    tasks: int,
    modes: str,
    json_file: Path | None,
    records_file: Path | None,
    closed_book: bool,
    feedback: bool,
    split: Split,
    repeats: int,
    body: str | None,
    shift: float,
    **of_both: Any,
) -> None:
    """Run tasks through the agent and report accuracy, calls, tokens and latency."""
    from entrogate_lab.almanac.closed_book import closed_book as examine
    from entrogate_lab.almanac.evaluate import evaluate

    wanted = _modes(modes)
    for path in (json_file, records_file):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"no folder {path.absolute().parent}")
    result = run_to_end(
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
        result["closed_book"] = run_to_end(examine(base_url, **of_both, questions=300))
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


def run_to_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it; known failures and Ctrl-C end in one line."""
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

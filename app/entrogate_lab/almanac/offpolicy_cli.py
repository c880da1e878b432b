"""`almanac offpolicy`."""

import json
from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the runs; finished ones are reused.",
)
@click.option(
    "--explored",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="Tasks to explore.",
)
@click.option(
    "--enforced",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Tasks to run under each of the four policies.",
)
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
    """Estimate four policies from an explored log, run them and compare.

    Run it again to continue after a stop.
    """
    from entrogate.calibrate.evaluate_cli import shown
    from entrogate.store.read.show import table
    from entrogate_lab.almanac.offpolicy import Plan, as_json, compare, run

    plan = Plan(explored=explored, enforced=enforced, seed=seed, concurrency=concurrency)
    run(out, plan, lambda line: click.echo(line, err=True), only)
    rows = compare(out)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(rows), indent=2) + "\n")
    lines = [["policy", "metric", "estimated", "ran", "brackets", "difference contains 0"]]
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

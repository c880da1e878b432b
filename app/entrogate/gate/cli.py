"""`entrogate policy`: look at policy files before a server does."""

from __future__ import annotations

import click
import yaml

from entrogate.gate.calibrated import CalibrationState, calibration_hash
from entrogate.gate.policy import load_policy
from entrogate.gate.schema import Calibration, Policy


@click.group()
def policy() -> None:
    """Check gate policies and replay their decisions."""


@policy.command()
@click.argument("file")
@click.option("--can-force", is_flag=True, help="Accept `force` rules (gate inside the engine).")
def check(file: str, *, can_force: bool) -> None:
    """Print FILE (a path or a bundled name) with each tool's defaults, or every error in it.

    Errors are one per line as file:line:column: message, with exit status 1.
    """
    loaded = load_policy(file, can_force=can_force)
    click.echo(f"# version {loaded.version}")
    if loaded.calibration is not None:
        click.echo(f"# calibration: {_calibration(loaded, loaded.calibration)}")
    rules = {name: loaded.rule(name) for name in loaded.tools}
    content = loaded.model_dump(mode="json", exclude={"defaults"}, exclude_none=True)
    content["tools"] = {n: r.model_dump(mode="json") for n, r in rules.items() if r is not None}
    click.echo(yaml.safe_dump(content, sort_keys=False), nl=False)


def _calibration(policy: Policy, block: Calibration) -> str:
    if block.hash != calibration_hash(policy):
        return CalibrationState.EDITED.told
    return f"as certified, for model {block.model}, weights {block.weights}"

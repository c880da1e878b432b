"""``entrogate loop``: collect, export, train, publish, round after round, from where it stopped.

Each step is a command of its own, and what it leaves in the round's folder says that it is done:

    DIR/round-1/began.json      weights that the round collects from
    DIR/round-1/collected       the collecting command has ended well
    DIR/round-1/dataset/        trajectories of those weights
    DIR/round-1/lora/           the result of `entrogate train`
    DIR/round-1/published.json  the name that it is served under
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import orjson

from entrogate.errors import ConfigError, EntrogateError, UpstreamUnavailable
from entrogate.ranges import FiniteRange

_POLL_SECONDS = 10.0

Say = Callable[[str], None]


class LoopError(EntrogateError):
    """A step of the loop failed; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the loop is told. ``collect`` is a shell command; None: wait for live traffic."""

    folder: Path
    model: str
    store: str
    gateway: str
    rounds: int
    collect: str | None
    at_least: int  # trajectories of a round
    settle_seconds: float
    share: float
    training: tuple[str, ...]


def run(plan: Plan, *, say: Say) -> None:
    """Do the rounds that are not done. Raises LoopError when a step fails; nothing is lost then."""
    for number in range(1, plan.rounds + 1):
        folder = plan.folder / f"round-{number}"
        if (folder / "published.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        version = _begin(plan, folder)
        _collect(plan, folder, number, say)
        rows = _export(plan, folder, version, say)
        say(f"round {number}: {rows} rows of version {version}; training")
        before = plan.folder / f"round-{number - 1}" / "lora"
        _train(plan, folder, before if before.is_dir() else None)
        _publish(plan, folder, number, say)


def _begin(plan: Plan, folder: Path) -> str:
    """The stable version when the round began: only what it sampled is trained on."""
    path = folder / "began.json"
    if path.is_file():
        return str(orjson.loads(path.read_bytes())["version"])
    versions = _weights(plan.gateway)
    version = next(str(each["version"]) for each in versions if each["stable"])
    _write(path, {"version": version})
    return version


def _collect(plan: Plan, folder: Path, number: int, say: Say) -> None:
    marker = folder / "collected"
    if plan.collect is None or marker.exists():
        return
    say(f"round {number}: collecting")
    environment = {"ENTROGATE_GATEWAY": plan.gateway, "ENTROGATE_ROUND": str(number)}
    code = subprocess.run(  # nosec B602  (the operator wrote the command)
        plan.collect, shell=True, env=os.environ | environment, check=False
    ).returncode
    if code:
        raise LoopError(f"the collecting command ended with {code}: {plan.collect}")
    marker.touch()


def _export(plan: Plan, folder: Path, version: str, say: Say) -> int:
    """Export until there is enough; without a collecting command this waits for traffic."""
    from entrogate.export.dataset import Dataset  # needs the extra `export`; the help does not

    target = folder / "dataset"
    command = ["export", "--store", plan.store, "--to", str(target), "--outcome-only"]
    command += ["--settle", str(plan.settle_seconds), "--weight-version", version]
    if (Path(plan.model) / "tokenizer.json").is_file():
        command += ["--model-folder", plan.model]
    while True:
        time.sleep(plan.settle_seconds)
        _entrogate(command)
        rows = sum(entry.rows for entry in Dataset.reading(str(target)).entries)
        if rows >= plan.at_least:
            return rows
        if plan.collect is not None:
            raise LoopError(
                f"only {rows} rows with an outcome after collecting, want {plan.at_least}"
            )
        say(f"{rows} of {plan.at_least} rows so far")
        time.sleep(_POLL_SECONDS)


def _train(plan: Plan, folder: Path, before: Path | None) -> None:
    command = ["train", str(folder / "dataset"), "--model", plan.model]
    command += ["--out", str(folder / "lora"), *plan.training]
    if before is not None:
        command += ["--adapter", str(before)]
    _entrogate(command)


def _publish(plan: Plan, folder: Path, number: int, say: Say) -> None:
    command = ["publish", str(folder / "lora"), "--gateway", plan.gateway]
    name = _entrogate([*command, "--share", str(plan.share)])
    _write(folder / "published.json", {"name": name, "share": plan.share})
    say(f"round {number}: {name} gets {plan.share:.0%} of new trajectories")


def _entrogate(arguments: Sequence[str]) -> str:
    """Run a command of ours; what it says goes to our stderr, what it prints is returned."""
    command = [sys.executable, "-m", "entrogate", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise LoopError(f"entrogate {arguments[0]} ended with {done.returncode} (see above)")
    return done.stdout.strip()


def _weights(gateway: str) -> list[dict[str, Any]]:
    try:
        answer = httpx.get(f"{gateway.rstrip('/')}/admin/weights", timeout=30, trust_env=False)
        return answer.json()["data"]
    except httpx.HTTPError as error:
        raise UpstreamUnavailable(f"no answer from the gateway {gateway}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"what answers at {gateway} is no Entrogate gateway") from None


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(orjson.dumps(content))
    temporary.replace(path)


@click.command()
@click.argument("training", nargs=-1)
@click.option("--dir", "folder", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--store", required=True, help="The gateway's store, sqlite:///FILE.")
@click.option("--gateway", default="http://127.0.0.1:8400", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--collect", help="Shell command that has tasks done; default: wait for traffic.")
@click.option("--at-least", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--settle", "settle_seconds", type=FiniteRange(min=0), default=30.0)
@click.option("--share", type=FiniteRange(0, 1), default=1.0, show_default=True)
def loop(**given: Any) -> None:
    """Improve the served model round after round; the same command goes on after a stop.

    TRAINING are options of `entrogate train`, after ``--``. The collecting command finds the
    gateway's URL in ENTROGATE_GATEWAY and the round in ENTROGATE_ROUND; it must post feedback.
    """
    run(Plan(**given), say=lambda text: click.echo(f"loop: {text}", err=True))

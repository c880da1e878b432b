"""The ``entrogate`` command: sub-commands are imported when they are called.

The table below carries the one-line helps, those of the distribution entrogate-lab included, so
that ``entrogate --help`` imports none of them and the base install needs none of the extras.

Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import NoReturn

import click

from entrogate import __version__
from entrogate.errors import EntrogateError
from entrogate.extras import install_command

INTERRUPTED = 130
# The extra, or the distribution, that brings a module which the base install lacks.
EXTRAS = {
    "entrogate_lab": "entrogate-lab",
    "openai": "entrogate-lab",
    "torch": "train",
    "transformers": "train",
    "tokenizers": "train",
    "safetensors": "train",
    "accelerate": "train",
    "peft": "train",
    "pyarrow": "export",
    "fsspec": "export",
    "matplotlib": "entrogate-lab[experiment]",
    "sklearn": "calibrate",
    "scipy": "calibrate",
    "psycopg": "postgres",
}

# Modules that are called otherwise where they are installed from.
_PACKAGES = {"sklearn": "scikit-learn", "entrogate_lab": "entrogate-lab"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyCommand:
    """Where a command lives (``module:attribute``), its help, and commands of other modules that
    are to appear inside it."""

    target: str
    help: str
    children: Mapping[str, str] = field(default_factory=dict[str, str])

    def load(self) -> click.Command:
        """Import the command and attach its ``children``.

        Raises TypeError where there are children and ``target`` is no click group.
        """
        command = _attribute(self.target)
        for name, target in self.children.items():
            if not isinstance(command, click.Group):
                raise TypeError(f"{self.target} must be a click group to hold `{name}`")
            command.add_command(_attribute(target), name)
        return command


COMMANDS: Mapping[str, LazyCommand] = {
    "serve": LazyCommand(
        target="entrogate.serve.cli:serve",
        help="Serve the OpenAI API in front of a vLLM (--upstream) or a model (--model).",
    ),
    "demo": LazyCommand(
        target="entrogate_lab.almanac.demo:demo",
        help="Show the gate at work on the bundled model, with a report.",
    ),
    "almanac": LazyCommand(
        target="entrogate_lab.almanac.cli:almanac",
        help="The bundled model: build it, ask it, evaluate an agent on it.",
    ),
    "policy": LazyCommand(
        target="entrogate.gate.cli:policy",
        help="Check, replay or evaluate a policy over the store, show those that were in force.",
        children={
            "evaluate": "entrogate.calibrate.evaluate_cli:evaluate_command",
            "replay": "entrogate.store.read.cli:replay",
            "versions": "entrogate.store.read.policies_cli:versions",
            "show": "entrogate.store.read.policies_cli:show",
        },
    ),
    "calibrate": LazyCommand(
        target="entrogate.calibrate.cli:calibrate",
        help="Choose a signal and certify a threshold from stored trajectories with shadows.",
    ),
    "trajectories": LazyCommand(
        target="entrogate.store.read.cli:trajectories",
        help="List, show and erase recorded trajectories.",
        children={"erase": "entrogate.store.admin.erase_cli:erase"},
    ),
    "prune": LazyCommand(
        target="entrogate.export.prune:prune",
        help="Delete old trajectories from the store.",
    ),
    "keys": LazyCommand(
        target="entrogate.store.admin.keys_cli:keys",
        help="Make, list and revoke API keys.",
    ),
    "audit": LazyCommand(
        target="entrogate.store.admin.erase_cli:audit",
        help="Who did what to the records and the keys.",
    ),
    "store": LazyCommand(
        target="entrogate.store.admin.cli:store",
        help="Migrate the store's database, or copy it while it is in use.",
    ),
    "export": LazyCommand(
        target="entrogate.export.cli:export",
        help="Write settled trajectories to Parquet, each exactly once.",
    ),
    "label": LazyCommand(
        target="entrogate.export.cli:label",
        help="Copy a dataset with rewards and advantages filled in.",
    ),
    "convert": LazyCommand(
        target="entrogate.export.cli:convert",
        help="Write a dataset in the format of another trainer (TRL, verl, JSON lines).",
    ),
    "train": LazyCommand(
        target="entrogate.train.cli:train",
        help="Train on exported trajectories (LoRA or all weights).",
    ),
    "publish": LazyCommand(
        target="entrogate.serve.weights_cli:publish",
        help="Put a trained LoRA into service: all requests, a share, or by name only.",
    ),
    "rollback": LazyCommand(
        target="entrogate.serve.weights_cli:rollback",
        help="Take a published LoRA out of service.",
    ),
    "weights": LazyCommand(
        target="entrogate.serve.weights_cli:weights",
        help="List what is in service, with its share of the requests.",
    ),
    "loop": LazyCommand(
        target="entrogate.train.loop:loop",
        help="Collect, export, train and publish, round after round.",
    ),
    "bench": LazyCommand(
        target="entrogate_lab.bench.cli:bench",
        help="Measure the gateway's overhead, the gate's decisions and an export.",
    ),
}


class _LazyGroup(click.Group):
    """A group whose sub-commands come from a table of import paths."""

    def __init__(self, *, table: Mapping[str, LazyCommand], **attributes: object) -> None:
        super().__init__(**attributes)  # pyright: ignore[reportArgumentType]
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        lazy = self._table.get(cmd_name)
        return None if lazy is None else lazy.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in self._table.items()])


def command_line(table: Mapping[str, LazyCommand] = COMMANDS) -> click.Group:
    """The root command over a table of sub-commands."""
    group = _LazyGroup(
        table=table,
        name="entrogate",
        help="Entropy-gated tool use: an OpenAI-compatible server in front of vLLM.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    return click.version_option(__version__, prog_name="entrogate")(group)


def run(arguments: Sequence[str], root: click.Group | None = None) -> int:
    """Run one command line and return its exit code; errors meant for the user become one line."""
    root = command_line() if root is None else root
    try:
        # Without standalone mode click returns the code of ctx.exit(), else the command's value.
        code = root.main(args=list(arguments), prog_name="entrogate", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(file=sys.stdout)
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EntrogateError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        name = _PACKAGES.get(missing, missing)
        click.echo(f"error: this needs {name}: {install_command(EXTRAS[missing])}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def _attribute(target: str) -> click.Command:
    module_name, _, attribute = target.partition(":")
    command: object = getattr(import_module(module_name), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{target} is not a click command")
    return command

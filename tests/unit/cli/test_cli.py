"""The root command: lazy, and every way to fail is one line and an exit code."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from entrogate import __version__, cli
from entrogate.errors import ConfigError
from entrogate.extras import install_command


@click.group()
def box() -> None:
    """A group of another module."""


@box.command()
@click.argument("how")
def fail(how: str) -> None:
    match how:
        case "config":
            raise ConfigError("no such policy: blanced")
        case "interrupt":
            raise KeyboardInterrupt
        case "abort":
            raise click.Abort
        case "extra":
            raise ModuleNotFoundError("No module named 'openai'", name="openai")
        case "exit":
            click.get_current_context().exit(3)
        case _:
            raise ZeroDivisionError("a bug")


@click.command()
def extra() -> None:
    click.echo("extra ran")


def box_with_extra() -> click.Group:
    lazy = cli.LazyCommand(
        target=f"{__name__}:box", help="A box.", children={"extra": f"{__name__}:extra"}
    )
    return cli.command_line({"box": lazy})


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("config", 1, "error: no such policy: blanced\n"),
        ("interrupt", 130, "interrupted\n"),
        ("abort", 130, "interrupted\n"),
        ("extra", 1, f"error: this needs openai: {install_command('entrogate-lab')}\n"),
        ("exit", 3, ""),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], how: str, code: int, line: str) -> None:
    assert cli.run(["box", "fail", how], box_with_extra()) == code
    assert capsys.readouterr().err.lstrip("\n") == line


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(["box", "fail", "bug"], box_with_extra())


def test_a_command_of_another_module_appears_inside_a_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["box", "extra"], box_with_extra()) == 0
    assert capsys.readouterr().out == "extra ran\n"


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serv"]) == 2
    assert "No such command 'serv'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"\n  {name} " not in out] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"entrogate, version {__version__}\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_loads_and_explains_itself(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.run([name, "--help"]) == 0
    assert f"Usage: entrogate {name}" in capsys.readouterr().out


def test_help_imports_no_subcommand_and_no_extra() -> None:
    program = (
        "import sys\n"
        "from entrogate.cli import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'torch', 'vllm', 'transformers', 'openai', 'fastapi', 'sqlalchemy', 'numpy'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_not_a_traceback() -> None:
    command = f"{sys.executable} -m entrogate --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_version_of_the_package_is_the_changelogs() -> None:
    changelog = Path(__file__).parents[3] / "CHANGELOG.md"
    assert f"## [{__version__}]" in changelog.read_text()


def number_options() -> list[tuple[str, click.Parameter]]:
    """Every option of every command, the nested ones too, that takes a number with a point."""
    found: list[tuple[str, click.Parameter]] = []

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                walk(f"{path} {name}", inner)
        found.extend(
            (f"{path} {option.opts[0]}", option)
            for option in command.params
            if isinstance(option.type, click.types.FloatParamType)
        )

    walk("", cli.command_line())
    return found


def test_no_number_on_the_command_line_is_nan_or_infinite() -> None:
    options = number_options()
    assert len(options) > 20
    taken: list[str] = []
    for name, option in options:
        for text in ("nan", "inf", "-inf"):
            try:
                option.type.convert(text, option, None)
            except click.BadParameter:
                continue
            taken.append(f"{name} {text}")
    assert taken == []


def test_nan_is_one_line_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["calibrate", "--delta", "nan"]) == 2
    assert capsys.readouterr().err.endswith(
        "Error: Invalid value for '--delta': nan is not a finite number\n"
    )


@pytest.mark.parametrize("name", ["export", "label", "convert", "prune", "train", "loop"])
def test_help_works_without_the_extra_of_exports(name: str) -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['pyarrow', 'fsspec', 'torch', 'sklearn'])\n"
        "from entrogate.cli import run\n"
        f"sys.exit(run([{name!r}, '--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_formats_in_the_help_are_those_there_are() -> None:
    formats = pytest.importorskip("entrogate.export.formats").FORMATS
    convert = cli.COMMANDS["convert"].load()
    choice = next(each.type for each in convert.params if each.name == "format_")
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == list(formats)

"""What the documentation says of settings, options, metrics and pages is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from entrogate.cli import COMMANDS
from entrogate.gate.schema import Policy
from entrogate.observe.metrics import Metrics
from entrogate.settings import Settings

ROOT = Path(__file__).parents[3]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ROW = re.compile(r"^\| `(ENTROGATE_\w+)` \|([^|]*)\|([^|]*)\|", re.MULTILINE)


def written(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "`[]`" if default == () else f"`{default}`"


def settings() -> dict[str, str]:
    """Environment variable → default as the page writes it."""
    found: dict[str, str] = {}
    for branch, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for name, leaf in model.model_fields.items():
            found[f"ENTROGATE_{branch}__{name}".upper()] = written(leaf.default)
    return found


def test_configuration_page_lists_every_setting_with_its_default() -> None:
    rows = {name: default.strip() for name, _, default in ROW.findall(CONFIGURATION)}
    assert rows == settings()


def test_configuration_page_names_the_options_of_serve() -> None:
    serve = COMMANDS["serve"].load()
    options = {o for p in serve.params if isinstance(p, click.Option) for o in p.opts}
    named = {o for _, cell, _ in ROW.findall(CONFIGURATION) for o in re.findall(r"--[a-z-]+", cell)}
    assert named == options


def test_every_metric_that_is_written_about_exists() -> None:
    body, _ = Metrics().render("text/plain")
    known = set(re.findall(r"^# TYPE (\w+)", body.decode(), re.MULTILINE))
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(entrogate_\w+?)(?:\{[^`]*\})?`", text))
    assert named
    assert named - known == set()


def test_the_start_page_names_every_command() -> None:
    _, _, table = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("## Commands")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE))))
    assert set(COMMANDS) - words == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_written_about_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"(?:^    |`)entrogate ((?:[a-z]+ ?)+)", text, re.MULTILINE):
        command: click.Command | None = None
        for word in line.split():
            if command is None:
                assert word in COMMANDS, f"entrogate {line}"
                command = COMMANDS[word].load()
            elif isinstance(command, click.Group):
                assert word in command.commands, f"entrogate {line}"
                command = command.commands[word]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page in the navigation, every link and anchor found, the references made."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "app")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    policy = (tmp_path / "reference" / "policy.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in policy for name in Policy.model_fields)
    http = (tmp_path / "reference" / "http.html").read_text(encoding="utf-8")
    assert all(f">{said}<" in http for said in ("POST /v1/messages", "GET /v1/trajectories"))
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f">entrogate {name}<" in commands for name in COMMANDS)


def test_monitoring_page_lists_every_attribute_of_spans() -> None:
    name = re.compile(r"[\"`]((?:gen_ai|entrogate|http|server|url|error)\.[a-z_.]+)[\"`]")
    others = {"http.response.start", "entrogate.tracing"}  # a message of ASGI, and a logger
    modules = ("observe/tracing.py", "turn/tracing.py")
    sources = [(ROOT / "app" / "entrogate" / module).read_text() for module in modules]
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    written = set(name.findall(page.partition("## Traces")[2]))
    assert written == {found for source in sources for found in name.findall(source)} - others


def test_monitoring_page_lists_every_metric_with_type_and_labels() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| `(entrogate_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", re.MULTILINE)
    written = {name: (kind, labels, text) for name, kind, labels, text in row.findall(text)}
    known: dict[str, tuple[str, str, str]] = {}
    for family, names in Metrics().describe():
        name = family.name + ("_total" if family.type == "counter" else "")
        known[name] = (family.type, ", ".join(f"`{n}`" for n in names), family.documentation)
    assert written == known

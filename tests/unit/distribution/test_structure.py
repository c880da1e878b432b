"""How the sources are built: no import circles, nothing too long, a map, nothing named that is not
there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[3]
APP = ROOT / "app"
SOURCES = sorted(APP.rglob("*.py"))
OTHERS = sorted(
    source for folder in ("tests", "docker", "scripts") for source in (ROOT / folder).rglob("*.py")
)
FILE_LINES = 400
LONG_FILES = {
    # The panels of the dashboard, one after the other: data, and run as a script of one file.
    "docker/grafana/dashboard.py",
}
FUNCTION_LINES = 50
LONG_FUNCTIONS = {
    # A migration is one list of what it creates, and is never changed.
    ("entrogate.store.migrations.versions.0001_initial", "upgrade"),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


def module_name(source: Path) -> str:
    parts = source.relative_to(APP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(syntax: ast.Module, modules: set[str]) -> set[str]:
    """All modules of ours that a source names, those imported late or only for types included."""
    found: set[str] = set()
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module or ""}
    return found & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def lines_of(source: Path) -> int:
    return len(source.read_text(encoding="utf-8").splitlines())


def length_of(function: Function) -> int:
    """Lines from its ``def`` to its end, without its docstring."""
    first, end = function.body[0], function.end_lineno
    assert end is not None
    lines = end - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    assert first.end_lineno is not None
    return lines - (first.end_lineno - first.lineno + 1)


def functions(source: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(source)) if isinstance(node, Function))


def docstrings(source: Path) -> Iterator[str]:
    for node in ast.walk(tree(source)):
        if isinstance(node, Documented):
            yield ast.get_docstring(node) or ""


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_name(source) for source in SOURCES}
    graph = {module_name(source): imported(tree(source), modules) for source in SOURCES}
    assert sum(map(len, graph.values())) > 500  # imports are found at all
    assert circle(graph) == []
    assert circle(graph | {"entrogate.errors": {"entrogate.cli"}}) != []


def test_files_are_not_too_long() -> None:
    lengths = {str(source.relative_to(ROOT)): lines_of(source) for source in SOURCES + OTHERS}
    assert {name for name, lines in lengths.items() if lines > FILE_LINES} == LONG_FILES


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        (module_name(source), function.name): length_of(function)
        for source in SOURCES
        for function in functions(source)
    }
    assert {name for name, lines in lengths.items() if lines > FUNCTION_LINES} == LONG_FUNCTIONS


def test_a_docstring_does_not_make_a_function_longer() -> None:
    plain, documented = ast.parse(
        'def plain(\n    x,\n):\n    return x\ndef told():\n    """A\n    b."""\n    return 1'
    ).body
    assert isinstance(plain, Function)
    assert isinstance(documented, Function)
    assert (length_of(plain), length_of(documented)) == (4, 2)


def test_docstrings_refer_to_nothing_that_is_not_there() -> None:
    named = {
        (module_name(source), page)
        for source in SOURCES
        for text in docstrings(source)
        for page in re.findall(r"[\w/.-]+\.md\b", text)
    }
    assert named
    assert {(module, page) for module, page in named if not (ROOT / page).is_file()} == set()


def test_docstrings_refer_to_decisions_that_are_there() -> None:
    numbers = {page.name[:4] for page in (ROOT / "docs" / "decisions").glob("0*.md")}
    named = {
        number
        for source in SOURCES
        for text in docstrings(source)
        for number in re.findall(r"[Dd]ecision (\d{4})", text)
    }
    assert named
    assert named - numbers == set()


def test_the_map_names_every_package_and_no_other() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    for distribution in ("entrogate", "entrogate_lab"):
        folder = APP / distribution
        _, _, table = text.partition(f"(`app/{distribution}/`")
        rows = re.findall(r"^\| ((?:`[\w./]+`,? ?)+)\|", table.partition("\n\n")[0], re.MULTILINE)
        written = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
        packages = {path.parent.name for path in folder.glob("*/__init__.py")}
        plain = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
        assert written == packages | plain


def test_what_the_map_names_is_there() -> None:
    """Every path in it, from the top or from the package that it speaks of."""
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|md|toml|yml|txt))`", text))
    places = [
        ROOT,
        APP,
        *(APP / name for name in ("entrogate", "entrogate/store", "entrogate_lab")),
    ]
    assert len(named) > 30
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


def test_every_decision_is_listed_and_missing_numbers_are_explained() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = sorted(page.name for page in folder.glob("0*.md"))
    assert [page for page in pages if f"]({page})" not in index] == []
    assert [page for page in pages if f"decisions/{page}" not in navigation] == []
    used = {page[:4] for page in pages}
    unused = {f"{n:04}" for n in range(1, int(pages[-1][:4]))} - used
    assert all(number in index for number in unused)

"""The table, the JSON file and the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from entrogate_lab.almanac import report
from entrogate_lab.almanac.exhibits import Exhibits
from tests.unit.demo.figures import exhibits, result

VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails on an element that is closed wrongly; keeps the tags that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_table_holds_each_figure_and_its_change() -> None:
    rows = {row[0].strip(): row[1:] for row in report.table_rows(result()["modes"])}
    assert rows[""] == ("observe", "enforce", "change")
    assert rows["tasks"] == ("40", "40", "")
    assert rows["accuracy"] == ("65.0% [49.0%, 78.0%]", "66.0% [49.0%, 78.0%]", "+1.0 points")
    # (1.5 - 4) / 4 = -62.5 %, and round-half-even gives 62
    assert rows["calls per task"] == ("4.00 [3.50, 4.50]", "1.50 [1.20, 1.80]", "-62%")
    assert rows["completion tokens"] == ("12,345", "6,000", "-51%")
    assert rows["wasted tokens"] == ("0", "210", "")  # nothing to divide by
    assert rows["least that suffice"] == ("1.10", "1.10", "")


def test_one_mode_has_no_change_column() -> None:
    modes = {"observe": result()["modes"]["observe"]}
    assert {len(row) for row in report.table_rows(modes)} == {2}


def test_text_table_is_aligned() -> None:
    lines = report.text_table(result()["modes"]).splitlines()
    ends = {line.index("enforce") + len("enforce") for line in lines[:1]}
    assert ends == {lines[4].index("[1.20, 1.80]") + len("[1.20, 1.80]")}


def test_two_by_two_leaves_out_unknown_signs() -> None:
    assert report.two_by_two(exhibits().changes) == {
        "reduced": {"solved": 2, "not_solved": 1},
        "not_reduced": {"solved": 1, "not_solved": 0},
    }


def test_written_files(tmp_path: Path) -> None:
    report.write(tmp_path, result(), exhibits(), about={"policy": "balanced"})
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["modes"] == result()["modes"]
    assert saved["policy"] == "balanced"
    assert saved["schema_version"] == 1
    assert saved["trajectory_shown"] == "traj_1"
    assert saved["entropy_change"]["unlabelled"] == {"short_segment": 3}


def test_page_is_well_formed_self_contained_and_escaped() -> None:
    page = report.page(result(), exhibits(), about={"policy": "balanced"})
    parser = Balanced()
    parser.feed(page)
    assert parser.stack == []
    assert parser.tags.count("svg") == 4
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert parser.addresses == []
    assert "prefers-color-scheme: dark" in page
    assert "<Byron>" not in page
    assert "Ada &lt;Byron&gt;" in page
    assert "city: Rome &amp; nothing else" in page
    assert re.search(r"\$\w", page) is None


def test_page_says_what_changed() -> None:
    page = report.page(result(), exhibits(), about={})
    assert "same 40 held-out tasks, with the same seeds: -62% tool calls, accuracy +1.0" in page


@pytest.mark.parametrize("trace", [True, False])
def test_page_without_calls(trace: bool) -> None:
    shown = exhibits().trace if trace else None
    page = report.page(result(), Exhibits(trace=shown, changes=(), unlabelled={}), about={})
    assert ("No trajectory with a call" in page) is not trace

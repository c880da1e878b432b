"""Charts: what is drawn is in proportion to the numbers, and names cannot break out of it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from entrogate.ui.charts import bars, stacks

RECT = re.compile(
    r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"/>'
)


def test_pieces_of_a_bar_stand_on_each_other_in_proportion() -> None:
    drawn = stacks([("a", [30, 0, 10]), ("b", [0, 20, 0])], parts=("x", "y", "z"), label="Calls")
    pieces = [(kind, *map(float, numbers)) for kind, *numbers in RECT.findall(drawn)]
    bar = pieces[:2]
    assert [kind for kind, *_ in bar] == ["part0", "part2"]
    (_, _, y0, _, height0), (_, _, y2, _, height2) = bar
    assert height0 / height2 == pytest.approx(3, rel=0.01)
    assert y2 + height2 == pytest.approx(y0, abs=0.1)
    assert pieces[2][0] == "part1"
    assert pieces[2][4] / (height0 + height2) == pytest.approx(0.5, rel=0.01)
    assert len(pieces) == 3 + 3  # and the legend


@pytest.mark.parametrize("chart", ["bars", "stacks"])
def test_names_are_text(chart: str) -> None:
    name = '"><script>x</script>'
    drawn = (
        bars([(name, 1.0)], label=name)
        if chart == "bars"
        else stacks([(name, [1.0])], parts=[name], label=name)
    )
    assert "<script>" not in drawn
    ElementTree.fromstring(str(drawn))


def test_nothing_is_drawn_of_nothing() -> None:
    assert stacks([], parts=("x",), label="Calls") == ""

"""Plots: what is drawn where."""

import re
from xml.etree import ElementTree

import pytest

from entrogate_lab.almanac.plots import Bar, bar_plot, change_plot, entropy_plot, ticks
from tests.unit.demo.figures import exhibits, trace


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-1.05, 1.05, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (0.0, 7.4, [0.0, 2.0, 4.0, 6.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def elements(svg: str, css: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(svg).iter() if e.get("class") == css]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def test_entropy_plot_draws_every_known_token_and_segment() -> None:
    svg = entropy_plot(trace())
    bars = elements(svg, "range")
    assert len(bars) == 4  # five tokens, one without a value
    heights = [number(bar, "height") for bar in bars]
    assert heights[1] == max(heights)  # 2.5 nats, the highest upper bound
    assert heights[1] / heights[2] == pytest.approx(2.5 / 0.3, rel=0.01)
    assert len(elements(svg, "segment")) == 2
    assert len(elements(svg, "turn")) == 2
    assert "2.000 to 2.500 nats" in svg


def test_a_segment_covers_its_tokens() -> None:
    svg = entropy_plot(trace())
    first = elements(svg, "segment")[0]
    bars = elements(svg, "range")
    left, right = number(first, "x"), number(first, "x") + number(first, "width")
    assert left <= number(bars[0], "x") < right  # token 0 is in [0, 2)
    assert number(bars[1], "x") >= right  # token 2 is not


def test_bar_plot_heights_follow_the_values() -> None:
    bars = [
        Bar(label="observe", value=0.8, low=0.7, high=0.9, style="first"),
        Bar(label="enforce", value=0.4, low=0.3, high=0.5, style="second"),
    ]
    svg = bar_plot("Accuracy", "accuracy", bars, percent=True)
    tall, short = elements(svg, "first")[0], elements(svg, "second")[0]
    assert number(tall, "height") == pytest.approx(2 * number(short, "height"), rel=0.01)
    assert len(elements(svg, "whisker")) == 2
    assert "observe: 80.0% (95 %: 70.0% to 90.0%)" in svg


def test_change_plot_separates_outcomes_and_marks_the_median() -> None:
    svg = change_plot(exhibits().changes)
    good, bad = elements(svg, "good"), elements(svg, "bad")
    assert (len(good), len(bad)) == (4, 1)
    assert max(number(dot, "cx") for dot in good) < min(number(dot, "cx") for dot in bad)
    zero = number(elements(svg, "zero")[0], "y1")
    assert sum(number(dot, "cy") > zero for dot in good) == 2  # two fell below 0
    # solved: -0.5, -0.2, 0.05, 0.4 -> median -0.075
    assert re.search(r">4, median -0\.0[78]<", svg)
    assert ">1, median -0.30<" in svg


def test_change_plot_of_nothing() -> None:
    assert change_plot(()).count("no known ΔH") == 2

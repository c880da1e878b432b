"""The lines on fuses, for people."""

from dataclasses import replace

from entrogate.observe.fuses import FuseFigures
from entrogate.ui.fuses import fuse_lines

ARMED = FuseFigures(
    policy="p",
    version="1a",
    tool="lookup",
    blown=False,
    audits=0,
    waiting=3,
    losses=0,
    estimate=None,
    lower=None,
    upper=None,
    max_loss=0.05,
)
BLOWN = replace(
    ARMED,
    tool="search",
    blown=True,
    audits=40,
    waiting=0,
    losses=6,
    estimate=0.15,
    lower=0.061,
    upper=0.3,
)


def test_a_fuse_in_words_and_the_blown_ones_first() -> None:
    lines = fuse_lines([ARMED, BLOWN])
    assert [(line.tool, line.blown) for line in lines] == [("search", True), ("lookup", False)]
    assert lines[0].text == (
        "blown: its calls are only observed (policy p 1a). 6 of 40 audits were losses"
        " (15.0%; bounds 6.1% to 30.0%), 5.0% allowed."
    )
    assert lines[1].text == (
        "armed (policy p 1a). No audits judged yet, 5.0% allowed; 3 not judged yet."
    )

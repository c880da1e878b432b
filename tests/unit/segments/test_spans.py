"""Spans worked by hand, and against a machine that reads one token at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.segments import (
    CALL_MARKER_MISSING,
    Markers,
    call_gap,
    decision_position,
    find_spans,
    reasoning_ranges,
    starts_in_reasoning,
)
from entrogate.types import Span, SpanKind

THINK, END_THINK, CALL, END_CALL, EOS = 1, 2, 3, 4, 5
MARKERS = Markers(
    think_open=THINK,
    think_close=END_THINK,
    call_open=CALL,
    call_close=END_CALL,
    end=frozenset({EOS}),
)
LETTERS = {
    SpanKind.REASONING: "r",
    SpanKind.CALL: "c",
    SpanKind.ANSWER: "a",
    SpanKind.CONTROL: ".",
}
IDS = {"<": THINK, ">": END_THINK, "(": CALL, ")": END_CALL, "$": EOS}


def ids_of(text):
    """`<rr>aa(cc)$`: the markers as brackets, any other letter a text token."""
    return [IDS.get(letter, 100 + i) for i, letter in enumerate(text)]


def drawn(spans):
    return "".join(LETTERS[s.kind] * (s.stop - s.start) for s in spans)


@pytest.mark.parametrize(
    ("tokens", "kinds"),
    [
        ("", ""),
        ("hello$", "aaaaa."),
        ("<think>hi$", ".rrrrr.aa."),
        ("think>hi$", "rrrrr.aa."),  # the prompt ended in an open think marker
        ("<think>\n(json)$", ".rrrrr.a.cccc.."),
        ("so(json)$", "rr.cccc.."),  # no think markers: the text before the call is reasoning
        ("so(json)\n(json)$", "rr.cccc.a.cccc.."),
        ("so(json)after$", "rr.cccc.aaaaa."),
        ("so(", "rr."),
        ("(json)$", ".cccc.."),
        ("<thi(js)", ".rrr.cc."),  # a call ends the reasoning
        ("(j<s>n)$", ".ccccc.."),  # think markers inside a call are arguments
        ("a<b>c<d>e$", "a.r.a.r.a."),
        ("ab)c$", "aa.a."),
        ("$$", ".."),
        ("<>(json)$", "...cccc.."),
    ],
)
def test_spans(tokens, kinds):
    assert drawn(find_spans(ids_of(tokens), MARKERS, stopped=True)) == kinds


@pytest.mark.parametrize(("tokens", "kinds"), [("so(js", "rr.cc"), ("<thi", ".rrr"), ("a<", "a.")])
def test_a_turn_that_is_cut_off(tokens, kinds):
    assert drawn(find_spans(ids_of(tokens), MARKERS, stopped=False)) == kinds


def test_a_prompt_inside_think_that_is_not_closed_yet():
    spans = find_spans(ids_of("thi"), MARKERS, stopped=False, starts_in_reasoning=True)
    assert drawn(spans) == "rrr"


def test_the_stop_token_is_control_whatever_its_id():
    assert drawn(find_spans([7, 8, 9], MARKERS, stopped=True)) == "aa."
    assert drawn(find_spans([7, 8, 9], MARKERS, stopped=False)) == "aaa"


def test_a_model_without_markers():
    assert drawn(find_spans([1, 2, 3], Markers(), stopped=False)) == "aaa"


def test_arrays_as_vllm_gives_them():
    ids = np.array(ids_of("<r>a$"), dtype=np.int32)
    assert find_spans(ids, MARKERS, stopped=True) == (
        Span(kind=SpanKind.CONTROL, start=0, stop=1),
        Span(kind=SpanKind.REASONING, start=1, stop=2),
        Span(kind=SpanKind.CONTROL, start=2, stop=3),
        Span(kind=SpanKind.ANSWER, start=3, stop=4),
        Span(kind=SpanKind.CONTROL, start=4, stop=5),
    )


@pytest.mark.parametrize(
    ("tokens", "ranges", "decision"),
    [
        ("<rr>aa(cc)$", ((1, 3),), 6),
        ("<rr>aa$", ((1, 3),), 4),
        ("rr(cc)aa$", ((0, 2),), 2),
        ("aa$", ((0, 2),), 0),
        ("<r>a<r>(c)$", ((1, 2), (5, 6)), 7),
        ("(cc)$", (), 0),
        ("<r>(c)(c)$", ((1, 2),), 3),
        ("$", (), None),
    ],
)
def test_the_segment_and_the_decision(tokens, ranges, decision):
    spans = find_spans(ids_of(tokens), MARKERS, stopped=True)
    assert reasoning_ranges(spans) == ranges
    assert decision_position(spans) == decision


def one_at_a_time(ids, *, stopped):
    """An independent reading: a letter for each token."""
    thinks = [i for i in ids if i in (THINK, END_THINK)]
    called = [i for i, token in enumerate(ids) if token == CALL]
    # A close before any open, unless both only occur inside a call, means: began in reasoning.
    mode, out = ("r" if thinks and thinks[0] == END_THINK else "a"), []
    for i, token in enumerate(ids):
        last = stopped and i == len(ids) - 1
        inside = mode == "c" and token in (THINK, END_THINK)
        if (token not in IDS.values() or inside) and not last:
            out.append(mode)
            continue
        out.append(".")
        if not inside:
            mode = {THINK: "r", END_THINK: "a", CALL: "c", END_CALL: "a"}.get(token, mode)
    if "r" not in out and called:
        out = ["r" if x == "a" and i < called[0] else x for i, x in enumerate(out)]
    return "".join(out)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 9]), max_size=14), st.booleans())
def test_against_one_token_at_a_time(ids, stopped):
    spans = find_spans(ids, MARKERS, stopped=stopped)
    assert drawn(spans) == one_at_a_time(ids, stopped=stopped)
    assert [s.start for s in spans] == [0, *[s.stop for s in spans]][: len(spans)]
    assert all(a.kind is not b.kind for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("prompt", "starts"),
    [
        ("", False),
        ("hello", False),
        ("hi<", True),
        ("hi<n", True),
        ("hi<n>n", False),  # the form of a template that was told not to think
        ("hi<>", False),
        ("hi>n<n", True),
        ("a<bcdef", False),  # in somebody's text
    ],
)
def test_starts_in_reasoning_where_the_last_marker_of_the_prompts_end_opens(prompt, starts):
    ids = ids_of(prompt)
    assert starts_in_reasoning(ids, THINK, END_THINK) is starts
    assert starts_in_reasoning(np.array(ids, dtype=np.int32), THINK, END_THINK) is starts
    assert not starts_in_reasoning(ids, None, None)


@pytest.mark.parametrize(
    ("tokens", "markers", "gap"),
    [
        ("so{json}$", Markers(), CALL_MARKER_MISSING),
        ("<so>{json}$", Markers(think_open=THINK, think_close=END_THINK), CALL_MARKER_MISSING),
        ("{json}$", MARKERS, CALL_MARKER_MISSING),  # a forced tool
        ("<so>{json}$", MARKERS, None),  # the reasoning is known, and is all that is measured
        ("so(json)$", MARKERS, None),
    ],
)
def test_a_call_that_no_marker_opens_is_a_gap(tokens, markers, gap):
    spans = find_spans(ids_of(tokens), markers, stopped=True)
    assert call_gap(spans, markers, called=True) == gap
    assert call_gap(spans, markers, called=False) is None

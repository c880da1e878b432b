"""The engine's gate against the gateway's: the same segment, the same value, the same side."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrogate.engine.gate import STATISTICS, GateNumbers, GateState, unpack
from entrogate.entropy.statistics import segment_stats
from entrogate.segments.spans import Markers, find_spans, reasoning_ranges
from entrogate.types import Capture, Estimator

CALL, OPEN, CLOSE, BLANK, TEXT = 1, 2, 3, 4, 5


def numbers(**changed: object) -> GateNumbers:
    values: dict[str, object] = {
        "call_id": CALL,
        "think_open_id": OPEN,
        "think_close_id": CLOSE,
        "statistic": 0,
        "threshold": 1.0,
        "min_tokens": 1,
        "suppress_certain": True,
        "suppress_uncertain": False,
        "force_above": math.inf,
        "blank_ids": frozenset({BLANK}),
    }
    return GateNumbers(**(values | changed))  # pyright: ignore[reportArgumentType]


def after(gate: GateNumbers, tokens: list[tuple[int, float]], *, starts: bool = False) -> GateState:
    state = GateState(gate, starts)
    for token_id, entropy in tokens:
        state.take(token_id, entropy, entropy)
    return state


@given(
    tokens=st.lists(
        st.tuples(st.sampled_from([OPEN, CLOSE, BLANK, TEXT]), st.floats(0, 10, width=32)),
        max_size=30,
    ),
    statistic=st.integers(0, len(STATISTICS) - 1),
    starts=st.booleans(),
)
def test_value_is_that_of_the_segment_before_the_call(
    tokens: list[tuple[int, float]], statistic: int, starts: bool
) -> None:
    state = after(numbers(statistic=statistic), tokens, starts=starts)
    entropy = np.array([e for _, e in tokens], dtype=np.float32)
    none = np.zeros(len(tokens), dtype=np.float32)
    capture = Capture(
        token_ids=np.array([t for t, _ in tokens], dtype=np.int32),
        logprobs=none,
        entropy_lower=entropy,
        entropy_upper=entropy,
        margin=entropy,
        tail_mass=none,
        p_tool_call=none,
        estimator=Estimator.EXACT,
        top_k=None,
    )
    markers = Markers(think_open=OPEN, think_close=CLOSE, call_open=CALL)
    spans = find_spans([t for t, _ in tokens], markers, stopped=False, starts_in_reasoning=starts)
    closes_first = next((t for t, _ in tokens if t in (OPEN, CLOSE)), OPEN) == CLOSE
    if closes_first and not starts:
        return  # the gateway finds out that the prompt began the reasoning; here it is told
    stats = segment_stats(capture, reasoning_ranges(spans))
    if stats is None:
        assert math.isnan(state.value())
        return
    name = STATISTICS[statistic]
    expected = {
        "entropy_max": stats.max.lower,
        "entropy_mean": stats.mean.lower,
        "entropy_tail_mean": stats.tail_mean.lower,
        "entropy_last_window": stats.last_window.lower,
        "margin_mean": stats.margin_mean,
        "margin_min": stats.margin_min,
    }[name]
    assert state.n_tokens == stats.n_tokens
    assert state.value() == pytest.approx(expected, rel=1e-9)


def test_a_closed_empty_think_block_in_the_prompt_is_not_open() -> None:
    gate = numbers()
    assert GateState.begin(gate, [9, OPEN, BLANK]).thinking
    assert not GateState.begin(gate, [9, OPEN, BLANK, CLOSE, BLANK]).thinking


def test_suppresses_where_certain_and_long_enough() -> None:
    certain = [(OPEN, 0.0), (TEXT, 0.2), (TEXT, 0.9), (CLOSE, 5.0), (BLANK, 3.0)]
    assert after(numbers(), certain).suppresses()
    assert not after(numbers(threshold=0.9), certain).suppresses()
    assert not after(numbers(min_tokens=3), certain).suppresses()
    assert not after(numbers(suppress_certain=False), certain).suppresses()
    assert not after(numbers(), [*certain, (CALL, 0.0)]).suppresses()
    assert not GateState(numbers(), thinking=False).suppresses()


def test_a_wide_margin_is_certain() -> None:
    wide = [(OPEN, 0.0), (TEXT, 4.0)]
    assert after(numbers(statistic=5), wide).suppresses()
    assert not after(numbers(statistic=5, threshold=5.0), wide).suppresses()


def test_exploring_turns_it_round() -> None:
    uncertain = [(OPEN, 0.0), (TEXT, 4.0)]
    assert not after(numbers(), uncertain).suppresses()
    turned = numbers(suppress_certain=False, suppress_uncertain=True)
    assert after(turned, uncertain).suppresses()


def test_forces_only_between_the_reasoning_and_the_answer() -> None:
    gate = numbers(force_above=2.0)
    thought = [(OPEN, 0.0), (TEXT, 3.0)]
    assert not after(gate, thought).may_force()
    closed = [*thought, (CLOSE, 0.0), (BLANK, 0.0)]
    assert after(gate, closed).may_force()
    assert not after(gate, [*closed, (TEXT, 0.0)]).may_force()
    assert not after(gate, [*closed, (CALL, 0.0)]).may_force()
    assert not after(numbers(), closed).may_force()
    assert not after(numbers(force_above=3.0), closed).may_force()
    assert not after(gate, [(TEXT, 3.0)]).may_force()  # nothing was reasoned


@given(st.floats(0, 1e6), st.booleans(), st.sets(st.integers(0, 300_000), max_size=5))
def test_numbers_survive_the_request(threshold: float, flag: bool, blanks: set[int]) -> None:
    gate = numbers(threshold=threshold, suppress_uncertain=flag, blank_ids=frozenset(blanks))
    packed = [float(n) for n in gate.pack()]  # vllm_xargs may turn all into floats
    assert unpack(packed, 300_001) == gate


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([1, 2], "10 to"),
        ([9] * 11, "format 1"),
        ([1, 1, 2, 3, 77, 0, 1, 1, 0, -1], "77"),
        ([1, 100, 2, 3, 0, 0, 1, 1, 0, -1], "100"),
        ([1, -1, 2, 3, 0, 0, 1, 1, 0, -1], "-1"),
        ([1, 1, 2, 3, 0, float("nan"), 1, 1, 0, -1], "number"),
        ([1, 1, 2, 3, 0, float("inf"), 1, 1, 0, -1], "number"),
        ([1, 1, 2, 3, 0, 10**400, 1, 1, 0, -1], "number"),
        ([1, 1, 2, 3, 0, "0", 1, 1, 0, -1], "str"),
        ([1, 1.5, 2, 3, 0, 0, 1, 1, 0, -1], "1.5"),
        ([1, 1, 2, 3, 0, 0, 1, 2, 0, -1], "0 to 1"),
        ([1, 1, 2, 3, 0, 0, 1, 1, 0, -1, 100], "100"),
        ([1, 1, 2, 3, 0, 0, 1, 1, 0, -1, *range(65)], "numbers"),
        ("1123450000", "list"),
        (None, "list"),
    ],
)
def test_malformed_numbers_say_what_is_wrong(bad: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(bad, 100)

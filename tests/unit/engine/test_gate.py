"""The engine's gate against the gateway's: the same segment, the same value, the same side."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entrogate.engine.gate import STATISTICS, GateNumbers, GateState, unpack
from entrogate.entropy.statistics import segment_stats
from entrogate.segments.spans import Markers, find_spans, reasoning_ranges
from entrogate.types import Capture, Estimator

CALL, OPEN, CLOSE, BLANK, TEXT, CALL_CLOSE, END = 1, 2, 3, 4, 5, 6, 7
MARKERS = Markers(
    think_open=OPEN,
    think_close=CLOSE,
    call_open=CALL,
    call_close=CALL_CLOSE,
    end=frozenset({END}),
)


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
        "control_ids": frozenset({END}),
        "call_close_id": CALL_CLOSE,
    }
    return GateNumbers(**(values | changed))  # pyright: ignore[reportArgumentType]


def after(gate: GateNumbers, tokens: list[tuple[int, float]], *, starts: bool = False) -> GateState:
    state = GateState(gate, starts)
    for token_id, entropy in tokens:
        state.take(token_id, entropy, entropy, -entropy)
    return state


@given(
    tokens=st.lists(
        st.tuples(
            st.sampled_from([OPEN, CLOSE, BLANK, TEXT, TEXT, CALL, CALL_CLOSE, END]),
            st.floats(0, 10, width=32),
        ),
        max_size=30,
    ),
    statistic=st.integers(0, len(STATISTICS) - 1),
    starts=st.booleans(),
)
@example(tokens=[(END, 3.0), (TEXT, 0.125)], statistic=0, starts=False)
@example(
    tokens=[(OPEN, 0), (TEXT, 0.125), (CALL_CLOSE, 3.0), (TEXT, 2.0)], statistic=0, starts=False
)
@example(tokens=[(TEXT, 0.125), (CLOSE, 3.0), (TEXT, 2.0)], statistic=0, starts=False)
@example(
    tokens=[(TEXT, 0.125), (CALL_CLOSE, 3.0), (TEXT, 2.0), (CLOSE, 0)], statistic=0, starts=False
)
@settings(max_examples=1000)
def test_at_every_token_the_value_is_that_of_the_gateway(
    tokens: list[tuple[int, float]], statistic: int, starts: bool
) -> None:
    """Up to the first call, which is the last place where the gate in the engine decides."""
    state = GateState(numbers(statistic=statistic), starts)
    for count, (token_id, entropy) in enumerate(tokens):
        expected = measured(tokens[:count], STATISTICS[statistic], starts)
        assert (state.n_tokens, state.value(0.25)) == pytest.approx(
            expected, nan_ok=True, rel=0, abs=0
        )
        if token_id == CALL:
            return
        state.take(token_id, entropy, entropy, -entropy)
    expected = measured(tokens, STATISTICS[statistic], starts)
    assert (state.n_tokens, state.value(0.25)) == pytest.approx(expected, nan_ok=True, rel=0, abs=0)


def measured(tokens: list[tuple[int, float]], name: str, starts: bool) -> tuple[int, float]:
    """The number of tokens of the segment and the statistic, as the gateway has them."""
    entropy = np.array([e for _, e in tokens], dtype=np.float32)
    none = np.zeros(len(tokens), dtype=np.float32)
    capture = Capture(
        token_ids=np.array([t for t, _ in tokens], dtype=np.int32),
        logprobs=-entropy,
        entropy_lower=entropy,
        entropy_upper=entropy,
        margin=entropy,
        tail_mass=none,
        p_tool_call=none,
        estimator=Estimator.EXACT,
        top_k=None,
    )
    ids = [t for t, _ in tokens]
    spans = find_spans(ids, MARKERS, stopped=False, starts_in_reasoning=starts)
    stats = segment_stats(capture, reasoning_ranges(spans))
    if stats is None:
        return 0, math.nan
    values = {
        "entropy_max": stats.max.lower,
        "entropy_mean": stats.mean.lower,
        "entropy_tail_mean": stats.tail_mean.lower,
        "entropy_last_window": stats.last_window.lower,
        "margin_mean": stats.margin_mean,
        "margin_min": stats.margin_min,
        "entropy_sum": math.nan if stats.sum is None else stats.sum.lower,
        "logprob_sum": stats.logprob_sum,
        "p_tool_call": 0.25,
    }
    return stats.n_tokens, values[name]


def test_a_closed_empty_think_block_in_the_prompt_is_not_open() -> None:
    gate = numbers()
    assert GateState.begin(gate, [9, OPEN, BLANK]).segment.thinking
    assert not GateState.begin(gate, [9, OPEN, BLANK, CLOSE, BLANK]).segment.thinking


def test_suppresses_where_certain_and_long_enough() -> None:
    certain = [(OPEN, 0.0), (TEXT, 0.2), (TEXT, 0.9), (CLOSE, 5.0), (BLANK, 3.0)]
    assert after(numbers(), certain).suppresses(0.5)
    assert not after(numbers(threshold=0.9), certain).suppresses(0.5)
    assert not after(numbers(min_tokens=3), certain).suppresses(0.5)
    assert not after(numbers(suppress_certain=False), certain).suppresses(0.5)
    assert not after(numbers(), [*certain, (CALL, 0.0)]).suppresses(0.5)
    assert not GateState(numbers(), starts=False).suppresses(0.5)


def test_a_wide_margin_is_certain() -> None:
    wide = [(OPEN, 0.0), (TEXT, 4.0)]
    assert after(numbers(statistic=5), wide).suppresses(0.5)
    assert not after(numbers(statistic=5, threshold=5.0), wide).suppresses(0.5)


def test_a_likely_text_is_certain() -> None:
    likely = [(OPEN, 0.0), (TEXT, 0.5), (TEXT, 0.25)]  # log-probs of -0.5 and -0.25
    logprob_sum = STATISTICS.index("logprob_sum")
    assert after(numbers(statistic=logprob_sum, threshold=-0.8), likely).suppresses(0.5)
    assert not after(numbers(statistic=logprob_sum, threshold=-0.75), likely).suppresses(0.5)


def test_a_call_that_is_improbable_is_suppressed_by_its_probability() -> None:
    thought = [(OPEN, 0.0), (TEXT, 4.0)]
    state = after(numbers(statistic=STATISTICS.index("p_tool_call"), threshold=0.5), thought)
    assert state.suppresses(0.4)
    assert not state.suppresses(0.5)
    assert not state.suppresses(math.nan)


def test_exploring_turns_it_round() -> None:
    uncertain = [(OPEN, 0.0), (TEXT, 4.0)]
    assert not after(numbers(), uncertain).suppresses(0.5)
    turned = numbers(suppress_certain=False, suppress_uncertain=True)
    assert after(turned, uncertain).suppresses(0.5)


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
    ids = {"blank_ids": frozenset(blanks), "control_ids": frozenset({8, 9, 300_000})}
    gate = numbers(threshold=threshold, suppress_uncertain=flag, **ids)
    packed = [float(n) for n in gate.pack()]  # vllm_xargs may turn all into floats
    assert unpack(packed, 300_001) == gate


GOOD = [3, 1, 2, 3, 0, 0.5, 1, 1, 0, -1, 6, 1, 4, 7]


def changed(at: int, value: object) -> list[object]:
    return [*GOOD[:at], value, *GOOD[at + 1 :]]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([1, 2], "12 to"),
        ([9] * 14, "format 3"),
        (changed(4, 77), "77"),
        (changed(1, 100), "100"),
        (changed(1, -1), "-1"),
        (changed(5, float("nan")), "number"),
        (changed(5, float("inf")), "number"),
        (changed(5, 10**400), "number"),
        (changed(5, "0"), "str"),
        (changed(5, [[]]), "list"),
        (changed(1, 1.5), "1.5"),
        (changed(7, 2), "0 to 1"),
        (changed(11, 3), "0 to 2"),
        (changed(12, 100), "100"),
        (changed(13, -1), "-1"),
        ([*GOOD, *range(300)], "numbers"),
        ("1123450000", "list"),
        (None, "list"),
    ],
)
def test_malformed_numbers_say_what_is_wrong(bad: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(bad, 100)

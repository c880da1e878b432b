"""The bounds against exact float64 entropies, extremal distributions and values worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrogate.entropy.topk import topk_bounds

SLACK = 1e-3  # nats: what rounding adds to an interval at a vocabulary of some thousands


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def entropy(logprobs):
    finite = logprobs[np.isfinite(logprobs)]
    return float(-(np.exp(finite) * finite).sum())


def log_softmax_float32(logits, accumulators=4):
    """As a vector unit does it: some float32 accumulators that add term after term."""
    shifted = (logits - logits.max()).astype(np.float32)
    terms = np.exp(shifted)
    lanes = np.zeros((accumulators, -(-len(terms) // accumulators)), dtype=np.float32)
    lanes.T.flat[: len(terms)] = terms
    total = np.cumsum(lanes, axis=1, dtype=np.float32)[:, -1].sum(dtype=np.float32)
    return shifted - np.log(total)


def as_vllm_chat(logprobs, sampled, k):
    """The sampled token first, then the largest ones, cut to k."""
    ranked = np.argsort(-logprobs, kind="stable")[:k]
    listed = list(dict.fromkeys([sampled, *ranked.tolist()]))[:k]
    return logprobs[listed]


def as_vllm_completions(logprobs, sampled, k):
    ranked = np.argsort(-logprobs, kind="stable")[:k]
    return logprobs[list(dict.fromkeys([sampled, *ranked.tolist()]))]


def as_plain_top_k(logprobs, sampled, k):
    return np.sort(logprobs)[::-1][:k]


LISTINGS = (as_vllm_chat, as_vllm_completions, as_plain_top_k)


def bounds_of(logprobs, sampled, k, listing=as_vllm_chat):
    values = np.asarray(listing(logprobs, sampled, k), dtype=np.float64)[None, :]
    one = topk_bounds(values, np.array([logprobs[sampled]], dtype=np.float64), len(logprobs))
    return float(one.lower[0]), float(one.upper[0])


def make_logits(kind, vocab, scale, rng):
    logits = rng.normal(size=vocab) * scale
    if kind == "peaked":
        logits[rng.integers(vocab)] = logits.max() + 3 * scale
    elif kind == "masked":
        logits[rng.random(vocab) < 0.999] = -np.inf
        logits[rng.integers(vocab)] = 0.0
    elif kind == "tied":
        logits = np.round(logits / scale) * scale
    elif kind == "floor":
        logits = rng.random(vocab) * 0.1
        logits[rng.integers(vocab)] = 10 + scale
    elif kind == "uniform":
        logits = np.zeros(vocab)
    return logits


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["normal", "peaked", "masked", "tied", "floor", "uniform"]),
    vocab=st.sampled_from([1_000, 1_003, 4_096, 32_000, 256_000]),
    scale=st.sampled_from([0.3, 1.0, 2.0, 4.0, 7.0]),
    k=st.sampled_from([1, 2, 3, 5, 20]),
    choice=st.sampled_from(["drawn", "largest", "smallest", "kth"]),
    listing=st.sampled_from(LISTINGS),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_exact_entropy_is_always_inside(kind, vocab, scale, k, choice, listing, seed):
    rng = np.random.default_rng(seed)
    logits = make_logits(kind, vocab, scale, rng).astype(np.float32).astype(np.float64)
    exact = log_softmax(logits)
    ranked = np.argsort(-exact, kind="stable")
    sampled = {
        "drawn": int(rng.choice(vocab, p=np.exp(exact) / np.exp(exact).sum())),
        "largest": int(ranked[0]),
        "smallest": int(ranked[np.isfinite(exact[ranked])][-1]),
        "kth": int(ranked[min(k, vocab - 1)]),
    }[choice]
    lower, upper = bounds_of(log_softmax_float32(logits), sampled, k, listing)
    assert lower <= entropy(exact) <= upper


@pytest.mark.parametrize("height", [14.0, 15.5, 16.6, 16.7, 17.0])
@pytest.mark.parametrize("vocab", [32_000, 152_000])
def test_mass_that_a_float32_sum_loses_stays_inside(vocab, height):
    logits = np.zeros(vocab)
    logits[0] = height  # e^-16.7 is just below half a unit in the last place of 1
    lossy, exact = log_softmax_float32(logits), log_softmax(logits)
    lower, upper = bounds_of(lossy, 0, 20)
    assert lower <= entropy(exact) <= upper


def test_worked_by_hand():
    # 1/2 and 1/4 known, 1/4 left for 4 tokens: H_K = ln 2 / 2 + ln 4 / 4 = ln 2.
    # Most: 4 times 1/16, 1/4 ln 16 = ln 2. Least: one token of 1/4, ln 4 / 4 = ln 2 / 2.
    logprobs = np.log(np.array([[0.5, 0.25]]))
    one = topk_bounds(logprobs, logprobs[:, 0], 6)
    assert one.lower[0] == pytest.approx(1.5 * math.log(2), abs=SLACK)
    assert one.upper[0] == pytest.approx(2 * math.log(2), abs=SLACK)
    assert one.margin[0] == pytest.approx(math.log(2))
    assert one.tail_mass[0] == pytest.approx(0.25)


def test_a_sampled_token_outside_the_list_is_known_too():
    # As above, but 1/16 of the tail was sampled: H_K = ln 2 + ln 16 / 16 = 1.25 ln 2, and 3/16 is
    # left for 3 tokens. Most: 3/16 ln 16 = 0.75 ln 2. Least: 3/16 ln(16/3).
    one = topk_bounds(np.log(np.array([[0.5, 0.25]])), np.log(np.array([1 / 16])), 6)
    assert one.upper[0] == pytest.approx(2 * math.log(2), abs=SLACK)
    assert one.lower[0] == pytest.approx(1.25 * math.log(2) + 3 / 16 * math.log(16 / 3), abs=SLACK)


@pytest.mark.parametrize("cap", [0.04, 0.001])
def test_both_bounds_are_attained(cap):
    head = np.array([0.3, 0.2, cap])
    tail = 1 - head.sum()
    full = int(tail / cap)
    size = 2_000
    flat = np.concatenate([head, np.full(size, tail / size)])
    steep = np.concatenate([head, np.full(full, cap), [tail - full * cap], np.zeros(size)])
    steep = steep[: len(flat)]
    with np.errstate(divide="ignore"):
        flat, steep = np.log(flat), np.log(steep)
    low, _ = bounds_of(steep, 0, 3, as_plain_top_k)
    _, high = bounds_of(flat, 0, 3, as_plain_top_k)
    assert low == pytest.approx(entropy(steep), abs=SLACK)
    assert high == pytest.approx(entropy(flat), abs=SLACK)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.5, 2.0, 5.0]))
def test_never_wider_than_the_simple_bounds(seed, scale):
    rng = np.random.default_rng(seed)
    logprobs = log_softmax(rng.normal(size=3_000) * scale)
    top = np.sort(logprobs)[::-1][:20]
    q = 1 - np.exp(top).sum()
    simple = entropy(top) - q * math.log(q)
    lower, upper = bounds_of(logprobs, int(np.argmax(logprobs)), 20)
    assert lower >= simple - SLACK
    assert upper <= simple + q * math.log(3_000 - 20) + SLACK


def test_a_peaked_token_of_a_large_vocabulary_has_a_narrow_interval():
    logits = np.random.default_rng(1).normal(size=152_000)
    logits[7] = 40.0
    lower, upper = bounds_of(log_softmax(logits), 7, 20)
    assert upper - lower < 1e-3


def test_a_token_displaced_from_the_list_does_not_lower_the_cap():
    # vLLM lists the sampled token (1/100) instead of the second largest: the tail holds 1/2.
    rest = (1 - 0.01 - 0.49 - 0.45) / 97
    logprobs = np.log(np.array([0.49, 0.45, 0.01, *[rest] * 97]))
    lower, upper = bounds_of(logprobs, 2, 2)
    assert lower <= entropy(logprobs) <= upper


@pytest.mark.parametrize(
    "values",
    [[math.log(0.9), math.log(0.9)], [math.nan, -1.0], [math.log(1.5), -3.0]],
    ids=["mass of 1.8", "nan", "probability of 1.5"],
)
def test_what_is_no_distribution_has_no_bounds(values):
    one = topk_bounds(np.array([values]), np.array([values[1]]), 100)
    assert np.isnan([one.lower[0], one.upper[0], one.margin[0], one.tail_mass[0]]).all()


def test_without_logprobs_nothing_is_known():
    none = topk_bounds(np.zeros((3, 0)), np.zeros(3), 100)
    assert np.isnan(none.lower).all()
    assert np.isnan(none.upper).all()


def test_infinite_and_floored_logprobs_are_the_same():
    floored = topk_bounds(np.array([[-0.1, -9999.0]]), np.array([-0.1]), 50)
    infinite = topk_bounds(np.array([[-0.1, -np.inf]]), np.array([-0.1]), 50)
    assert floored.upper[0] == infinite.upper[0]
    assert floored.margin[0] == infinite.margin[0] == pytest.approx(9998.9)


def test_the_whole_vocabulary_leaves_no_doubt():
    logprobs = log_softmax(np.random.default_rng(3).normal(size=30))
    lower, upper = bounds_of(logprobs, 4, 30, as_plain_top_k)
    assert lower == pytest.approx(entropy(logprobs), abs=SLACK)
    assert upper == pytest.approx(entropy(logprobs), abs=SLACK)


def test_refuses_a_list_longer_than_the_vocabulary():
    with pytest.raises(ValueError, match="vocab_size is wrong"):
        topk_bounds(np.zeros((1, 9)), np.zeros(1), 8)


def test_refuses_arrays_that_are_not_parallel():
    with pytest.raises(ValueError, match="want shapes"):
        topk_bounds(np.zeros((2, 3)), np.zeros(3), 8)


@settings(max_examples=300, deadline=None)
@given(
    weights=st.lists(st.floats(0, 30), min_size=2, max_size=5),
    k=st.integers(1, 3),
    sampled=st.integers(0, 4),
    listing=st.sampled_from(LISTINGS),
)
def test_tiny_vocabularies(weights, k, sampled, listing):
    exact = log_softmax(np.array(weights))
    lower, upper = bounds_of(
        log_softmax_float32(np.array(weights)), sampled % len(exact), min(k, len(exact)), listing
    )
    assert lower <= entropy(exact) <= upper

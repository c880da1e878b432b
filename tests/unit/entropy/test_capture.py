"""The builder against the bounds worked out token by token."""

import math

import numpy as np
import pytest

from entrogate.entropy import CaptureBuilder, topk_bounds
from entrogate.types import Estimator

VOCAB = 500


def tokens(n, counts, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        logits = rng.normal(size=VOCAB) * 3
        logprobs = logits - np.log(np.exp(logits).sum())
        token = int(rng.integers(VOCAB))
        top = np.sort(logprobs)[::-1][: counts[i % len(counts)]]
        yield token, float(logprobs[token]), top.tolist()


def fill(n, counts=(5,)):
    builder = CaptureBuilder(5, VOCAB)
    for token, logprob, top in tokens(n, counts):
        builder.add(token, logprob, top, 0.25)
    return builder


@pytest.mark.parametrize("counts", [(5,), (5, 3, 1), (0, 5), (6, 5)])
def test_matches_the_bounds_of_each_token_alone(counts):
    capture = fill(17, counts).build()
    for i, (token, logprob, top) in enumerate(tokens(17, counts)):
        alone = topk_bounds(np.array([top]).reshape(1, len(top)), np.array([logprob]), VOCAB)
        assert capture.token_ids[i] == token
        assert capture.logprobs[i] == np.float32(logprob)
        for name in ("margin", "tail_mass"):
            assert getattr(capture, name)[i] == pytest.approx(
                getattr(alone, name)[0], rel=1e-6, nan_ok=True
            )
        if top:
            lower, upper = capture.entropy_lower[i], capture.entropy_upper[i]
            assert float(lower) <= alone.lower[0] == pytest.approx(float(lower), rel=1e-6)
            assert float(upper) >= alone.upper[0] == pytest.approx(float(upper), rel=1e-6)
        else:
            assert math.isnan(capture.entropy_lower[i])


def test_a_prefix_can_be_built_while_tokens_arrive():
    builder = CaptureBuilder(5, VOCAB)
    whole = fill(9).build()
    for i, (token, logprob, top) in enumerate(tokens(9, (5,))):
        builder.add(token, logprob, top, 0.25)
        part = builder.build()
        assert len(part) == len(builder) == i + 1
        np.testing.assert_array_equal(part.entropy_upper, whole.entropy_upper[: i + 1])


@pytest.mark.parametrize("keep", [0, 1, 6, 9])
def test_truncate_forgets_the_rest(keep):
    builder = fill(9, (5, 3))
    builder.truncate(keep)
    again = list(tokens(9, (5, 3)))
    for token, logprob, top in again[keep:]:
        builder.add(token, logprob, top, 0.25)
    np.testing.assert_array_equal(
        builder.build().entropy_lower, fill(9, (5, 3)).build().entropy_lower
    )
    assert len(builder) == 9


def test_nothing_yet():
    capture = CaptureBuilder(5, VOCAB).build()
    assert len(capture) == 0
    assert capture.estimator is Estimator.TOPK
    assert capture.top_k == 5


def test_an_unknown_tool_call_probability_is_nan():
    builder = CaptureBuilder(1, VOCAB)
    builder.add(3, -0.1, [-0.1])
    assert math.isnan(builder.build().p_tool_call[0])


def test_refuses_to_keep_more_than_there_is():
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        fill(3).truncate(4)


@pytest.mark.parametrize(("top_k", "vocab"), [(-1, 10), (5, 1)])
def test_refuses_impossible_sizes(top_k, vocab):
    with pytest.raises(ValueError, match="want"):
        CaptureBuilder(top_k, vocab)


def test_many_at_once_equals_one_by_one() -> None:
    one, many = CaptureBuilder(3, 100), CaptureBuilder(3, 100)
    tops = [[-0.1, -2.5, -4.0], [-1.0], [-0.7, -0.7, -5.0]]
    for token_id, top in enumerate(tops):
        one.add(token_id, top[0], top, 0.25)
    many.add_many([0], [-0.1], tops[0], [3], [0.25])
    many.build()
    many.add_many([1, 2], [-1.0, -0.7], tops[1] + tops[2], [1, 3], [0.25, 0.25])
    for name in ("token_ids", "logprobs", "entropy_lower", "entropy_upper", "margin", "tail_mass"):
        expected, found = getattr(one.build(), name), getattr(many.build(), name)
        assert expected.tobytes() == found.tobytes(), name
    many.truncate(1)
    one.truncate(1)
    assert many.build().entropy_upper.tobytes() == one.build().entropy_upper.tobytes()


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="columns of one length"):
        CaptureBuilder(3, 100).add_many([0], [-0.1, -0.2], [-0.1], [1], [0.5])
    with pytest.raises(ValueError, match="alternatives counted"):
        CaptureBuilder(3, 100).add_many([0], [-0.1], [-0.1, -0.3], [1], [0.5])

"""The float32 statistics against numpy in float64 on the same logits."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from entrogate.engine.measure import (  # noqa: E402
    masked_probabilities,
    row_statistics,
    sampled_logprobs,
    small_row_statistics,
    small_sampled_logprobs,
)


def reference(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropy, margin and probabilities in float64; -inf is an impossible token."""
    x = logits.astype(np.float64)
    weights = np.exp(x - x.max(axis=1, keepdims=True))
    p = weights / weights.sum(axis=1, keepdims=True)
    # -sum p ln p loses the entropy of a peaked row to the rounding of ln p near 1.
    order = np.argsort(p, axis=1)
    entropy = np.empty(len(x))
    for row in range(len(x)):
        first, others = p[row, order[row, -1]], p[row, order[row, :-1]]
        others = others[others > 0]
        rest = others.sum()
        entropy[row] = -(others * np.log(others)).sum() - (1 - rest) * np.log1p(-rest)
        assert abs(first - (1 - rest)) < 1e-12
    ranked = np.sort(x, axis=1)
    return entropy, ranked[:, -1] - ranked[:, -2], p


def rows(kind: str, vocabulary: int) -> np.ndarray:
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(size=(6, vocabulary)) * np.array([[0.01], [1], [3], [8], [20], [40]])
    if kind == "peaked":
        logits[:, vocabulary // 2] += np.array([5, 10, 20, 30, 60, 100])
    if kind == "masked":
        logits[rng.random(logits.shape) < 0.9] = -np.inf
        logits[:, :3] = rng.normal(size=(6, 3))
    return logits.astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "peaked", "masked"])
@pytest.mark.parametrize("vocabulary", [1_000, 1_856, 32_000, 151_936, 262_144])
def test_equals_float64(kind: str, vocabulary: int) -> None:
    logits = rows(kind, vocabulary)
    entropy, margin, p = reference(logits)
    found = row_statistics(torch.from_numpy(logits.copy()), torch.full((len(logits),), 2))
    np.testing.assert_allclose(found.entropy_B.numpy(), entropy, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.margin_B.numpy(), margin, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.p_tool_call_B.numpy(), p[:, 2], rtol=2e-5, atol=1e-30)
    assert found.largest_B.tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("kind", ["random", "peaked", "masked"])
@pytest.mark.parametrize("vocabulary", [1_000, 1_856, 32_000])
def test_the_small_form_equals_float64(kind: str, vocabulary: int) -> None:
    logits = rows(kind, vocabulary)
    entropy, margin, p = reference(logits)
    before = logits.copy()
    measured, largest = small_row_statistics(logits, np.full(len(logits), 2))
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(measured[0], entropy, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(measured[1], margin, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measured[2], p[:, 2], rtol=2e-5, atol=1e-30)
    assert largest.tolist() == logits.argmax(axis=1).tolist()
    chosen = largest.tolist()
    expected = np.log(p[np.arange(len(p)), chosen])
    found = small_sampled_logprobs(logits, chosen)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(small_row_statistics(logits, np.full(len(logits), -1))[0][2]).all()
    alone = np.full((1, vocabulary), -np.inf, dtype=np.float32)
    alone[0, 3] = 1.0
    measured, largest = small_row_statistics(alone, np.array([3]))
    assert measured[:, 0].tolist() == [0.0, np.inf, 1.0]
    assert largest.tolist() == [3]


def test_the_largest_may_be_the_tool_call_and_may_be_the_only_one() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0], [-torch.inf, 2.0, -torch.inf], [1.0, 1.0, 1.0]])
    found = row_statistics(logits, torch.zeros(3, dtype=torch.int64))
    expected = np.exp([5.0, 1.0, 0.0]) / np.exp([5.0, 1.0, 0.0]).sum()
    assert found.p_tool_call_B.tolist() == pytest.approx([expected[0], 0.0, 1 / 3], rel=1e-6)
    assert found.entropy_B[1] == 0.0
    assert found.margin_B[1] == torch.inf
    assert found.entropy_B[2].item() == pytest.approx(np.log(3), rel=1e-6)


def test_no_tool_call_token_has_no_probability() -> None:
    assert row_statistics(torch.zeros(2, 4), torch.tensor([-1, -1])).p_tool_call_B.isnan().all()


def test_logits_are_not_changed() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    row_statistics(logits, torch.ones(3, dtype=torch.int64))
    assert torch.equal(logits, before)


def test_sampled_logprobs_are_those_of_what_was_left_to_sample() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, 0.5]])
    expected = np.log(np.exp(1.0) / np.exp([1.0, 2.0, 0.5]).sum())
    assert sampled_logprobs(logits, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def masked(logits: Any, call_id: int) -> tuple[Any, Any]:
    """The token's logit, and the logits with it masked, for a batch of one."""
    others = logits[None].clone()
    others[0, call_id] = -torch.inf
    return logits[call_id][None], others


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("call_id", [0, 3, 7])
def test_a_masked_token_would_have_been_sampled_with_its_probability(
    temperature: float, call_id: int
) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 1.9, -1.0, -30.0, 0.0, -2.0])
    call, others = masked(logits, call_id)
    scaled = logits.double() / temperature
    found = masked_probabilities(call, torch.tensor([temperature]), others / temperature)
    assert found.item() == pytest.approx(scaled.softmax(-1)[call_id].item(), rel=1e-5)


def test_greedy_decoding_samples_the_likeliest_token_alone() -> None:
    logits = torch.tensor([2.0, 1.0, 1.9])
    for call_id, expected in ((0, 1.0), (1, 0.0), (2, 0.0)):
        call, others = masked(logits, call_id)
        assert masked_probabilities(call, torch.tensor([0.0]), others).item() == expected


@pytest.mark.parametrize(("call_id", "sampled"), [(0, True), (3, True), (7, False)])
def test_what_top_k_cuts_off_is_never_sampled(call_id: int, sampled: bool) -> None:
    """The masked token takes no other's place, which is right up to the least likely one."""
    logits = torch.tensor([2.0, 1.0, 0.5, 1.9, -1.0, -30.0, 0.0, -2.0])
    call, others = masked(logits, call_id)
    kept = others.topk(4).values[0, -1]
    cut = others.masked_fill(others < kept, -torch.inf)
    found = masked_probabilities(call, torch.tensor([1.0]), cut).item()
    full = torch.cat((cut[0], call)).double().softmax(-1)[-1].item()
    assert found == pytest.approx(full if sampled else 0.0, rel=1e-5)


def test_each_row_has_a_tool_call_token_of_its_own() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    p = reference(logits)[2]
    ids = np.array([7, -1, 31, int(logits[3].argmax())])
    expected = [p[0, 7], np.nan, p[2, 31], p[3].max()]
    found = row_statistics(torch.from_numpy(logits), torch.from_numpy(ids)).p_tool_call_B.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(small_row_statistics(logits, ids)[0][2], expected, rtol=1e-5)

"""The bounds from the top k contain the entropy over the whole vocabulary, for every token.

The reference is independent of all our code: the model's weights in float64, one forward pass over
the very ids that vLLM sampled, and the definition −Σ p ln p.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from tests.e2e.conftest import FULL, MODEL, StartGateway, chat_body, tasks
from tests.integration.harness import CHAT

TOKENS_EACH = 200
SEQUENCES = 64 if FULL else 52  # 10,400 tokens
# What the engine's float32 forward pass may differ from float64, in nats.
ENGINE_ERROR = 1e-3


@cache
def reference_model() -> Any:
    """The bundled weights in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)


def true_logprobs(prompt: list[int], sampled: list[int]) -> np.ndarray:
    """At every sampled token, of the whole vocabulary: shape (T, V)."""
    import torch

    model = reference_model()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + sampled])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, dim=-1).numpy()


def test_bounds_contain_the_true_entropy(start: StartGateway) -> None:
    gateway = start()
    checked, outside, widths = 0, [], []
    with gateway.client() as client, ThreadPoolExecutor(8) as pool:

        def sample(task: Any) -> dict[str, Any]:
            # Beyond the end of turn the model rambles: all kinds of distributions are seen.
            body = chat_body(task, temperature=1.0, seed=1, max_tokens=TOKENS_EACH, ignore_eos=True)
            response = client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
            name = response.headers["x-entrogate-trajectory-id"]
            found = client.get(f"/v1/trajectories/{name}", params={"tokens": "true"}).json()
            return found["turns"][0]

        turns = list(pool.map(sample, tasks(SEQUENCES, seed=11)))
    for turn in turns:
        assert turn["capture_gap"] is None
        tokens = turn["tokens"]
        logprobs = true_logprobs(tokens["prompt_token_ids"], tokens["token_ids"])
        truth = -(np.exp(logprobs) * logprobs).sum(-1)
        lower, upper = np.array(tokens["entropy_lower"]), np.array(tokens["entropy_upper"])
        assert len(lower) == len(upper) == len(truth) == TOKENS_EACH
        bad = (truth < lower - ENGINE_ERROR) | (truth > upper + ENGINE_ERROR)
        outside += [(truth[i], lower[i], upper[i]) for i in np.flatnonzero(bad)]
        widths.append(upper - lower)
        checked += len(truth)
    assert checked >= 10_000
    assert outside == []
    assert float(np.median(np.concatenate(widths))) < 1.0, "bounds as wide as this say nothing"

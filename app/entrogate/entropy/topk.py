r"""Bounds of the entropy of a token from the largest log-probabilities.

arXiv 2602.02050 defines H over the full vocabulary, but a server returns only its largest values.

Let K be the tokens whose probability p_v is known (the k returned ones and, if it is none of them,
the sampled token), V the vocabulary, m = V - |K| and q = 1 - Σ_K p_v the mass of the tail. Then H =
H_K + H_tail with H_K = -Σ_K p ln p known exactly, and of the tail we know its mass q, its size m
and, because the k tokens are the *most likely* ones, that no tail token has more than c, the
smallest of their probabilities.

**Upper bound.** -Σ p ln p is concave, so with a fixed sum it is largest where all p are equal:
H_tail <= q ln(m / q) = -q ln q + q ln m. Equal shares q / m respect the cap c (q <= m c holds for
every real tail), so nothing smaller holds for all distributions.

**Lower bound.** A concave function over the polytope {0 <= p <= c, Σ p = q} is smallest at a
vertex, where all p but one are 0 or c: n = floor(q / c) tokens have c and one has the rest r = q -
n c. Hence H_tail >= -n c ln c - r ln r. This includes both simpler bounds: as r <= c it is at least
-q ln c (from -Σ p ln p >= Σ p (-ln c)), and for q <= c it *is* -q ln q. It is attained, so nothing
larger holds.

**Which probabilities are among the largest.** vLLM lists the sampled token first and cuts the list
to k, so a sampled token outside the top k displaces the k-th. Where the sampled token is the
smallest of the list, the cap is therefore the second smallest value.

**Rounding.** The log-probs are a float32 log-softmax printed as decimals. Against float64 of the
same logits two errors matter, both in the normaliser. Rounding: at most `_RELATIVE + V *
_PER_TOKEN`, twice what was measured for V = 2,000 to 152,000. Lost mass: an accumulator that holds
the largest term drops every later term below 2^-24 of it. With 4 parallel accumulators (the
narrowest vector unit in use) that is at most a quarter of the tail and at most 2^-24 * V / 4, and
it only ever makes the known probabilities too large. The interval is widened by both. As the
relative error of the cap c is tiny, q <= m c still keeps the interval of a peaked token narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

LOGPROB_FLOOR = -9999.0  # what vLLM prints for -inf
_RELATIVE = 4e-6
_PER_TOKEN = 2e-10
_ACCUMULATORS = 4
_TINY = float(np.finfo(np.float64).tiny)
_SAME_LOGPROB = 1e-6  # two prints of one float32 differ by less
_IMPOSSIBLE_MASS = (
    1e-2  # known probabilities that add up to more than 1 by this are no distribution
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopkBounds:
    """Parallel to the tokens, float64; ``nan`` where nothing can be said.

    ``lower`` and ``upper`` bound the entropy in nats; ``margin`` is the gap between the two largest
    log-probs in nats; ``tail_mass`` the probability outside the known tokens.
    """

    lower: Float64
    upper: Float64
    margin: Float64
    tail_mass: Float64


def topk_bounds(logprobs: Float64, sampled: Float64, vocab_size: int) -> TopkBounds:
    """Bounds for T tokens from the k returned log-probs of each (module docstring).

    ``logprobs`` has shape (T, k), in any order; ``sampled`` has shape (T,): the log-prob of the
    sampled token, which may be among the k or not. Raises ValueError on other shapes or k > V.
    """
    if logprobs.ndim != 2 or sampled.shape != logprobs.shape[:1]:
        raise ValueError(f"want shapes (T, k) and (T,), have {logprobs.shape} and {sampled.shape}")
    n_tokens, k = logprobs.shape
    if k > vocab_size:
        raise ValueError(f"{k} log-probs for a vocabulary of {vocab_size}: vocab_size is wrong")
    if k == 0 or n_tokens == 0:
        nothing = np.full(n_tokens, np.nan)
        return TopkBounds(lower=nothing, upper=nothing, margin=nothing, tail_mass=nothing)
    ranked = np.sort(np.maximum(logprobs, LOGPROB_FLOOR), axis=1)[:, ::-1]
    sampled = np.maximum(sampled, LOGPROB_FLOOR)
    listed = np.min(np.abs(ranked - sampled[:, None]), axis=1) <= _SAME_LOGPROB
    lowest = listed & (sampled <= ranked[:, -1] + _SAME_LOGPROB)

    extra = np.where(listed, 0.0, np.exp(sampled))
    known = np.exp(ranked)
    head = -(known * ranked).sum(axis=1) - extra * sampled
    mass = known.sum(axis=1) + extra
    unknown = np.maximum(vocab_size - k - np.where(listed, 0, 1), 0)
    cap = np.where(lowest, known[:, -2] if k > 1 else 1.0, known[:, -1])
    lower, upper = _widen(head, 1.0 - mass, unknown, cap, vocab_size)

    invalid = ~(mass <= 1.0 + _IMPOSSIBLE_MASS)  # also where a log-prob is nan
    sure = np.where(lowest, k - 1, k)  # how many of the list are the most likely ones
    margin = ranked[:, 0] - ranked[:, 1] if k > 1 else np.full(n_tokens, np.nan)
    return TopkBounds(
        lower=np.where(invalid, np.nan, lower),
        upper=np.where(invalid, np.nan, upper),
        margin=np.where(invalid | (sure < 2), np.nan, margin),
        tail_mass=np.where(invalid, np.nan, np.clip(1.0 - mass, 0.0, 1.0)),
    )


def _widen(
    head: Float64, tail: Float64, unknown: Float64, cap: Float64, vocab_size: int
) -> tuple[Float64, Float64]:
    """Bounds of head + tail entropy over every tail mass that rounding allows.

    Both tail bounds are taken at the end of the allowed masses where they are the weakest if they
    grow with the mass. Where they fall, they do so with a slope of at most 1, so that ``error``,
    which is no less than the range of masses, covers it.
    """
    rounding = _RELATIVE + vocab_size * _PER_TOKEN
    tail = np.maximum(tail, 0.0)
    lost = np.minimum(tail / (_ACCUMULATORS - 1), vocab_size / _ACCUMULATORS * 2.0**-24)
    error = (2.0 * rounding + lost) * (1.0 + head)
    cap = cap * (1.0 + rounding)
    most = unknown * cap
    least_mass = np.minimum(np.maximum(tail - rounding, 0.0), most)
    most_mass = np.minimum(np.minimum(tail + lost + rounding, most), 1.0)
    lower = head - error + _least_entropy(least_mass, cap)
    upper = head + error + _surprise(most_mass) + most_mass * np.log(np.maximum(unknown, 1.0))
    return np.maximum(lower, 0.0), np.minimum(upper, np.log(vocab_size) + rounding)


def _least_entropy(mass: Float64, cap: Float64) -> Float64:
    """Least entropy of a tail of ``mass`` with no token above ``cap``."""
    cap = np.maximum(cap, _TINY)
    full = np.floor(mass / cap)
    return full * _surprise(cap) + _surprise(np.maximum(mass - full * cap, 0.0))


def _surprise(p: Float64) -> Float64:
    """-p ln p, 0 at 0."""
    return -p * np.log(np.maximum(p, _TINY))

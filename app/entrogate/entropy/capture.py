"""Collects what the engine says of each sampled token; works it out only when asked."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from entrogate.entropy.topk import LOGPROB_FLOOR, TopkBounds, topk_bounds
from entrogate.types import Capture, Estimator, FloatArray


class CaptureBuilder:
    """Grows by one sampled token at a time; ``add`` is on the path of every streamed token."""

    def __init__(self, top_k: int, vocab_size: int) -> None:
        if top_k < 0:
            raise ValueError(f"top_k is {top_k}; want 0 or more")
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}; want at least 2")
        self.top_k = top_k
        self.vocab_size = vocab_size
        self._token_ids = array("i")
        self._logprobs = array("d")
        self._p_tool_call = array("d")
        self._values = array("d")  # the returned log-probs of all tokens, one after another
        self._ends = array("q")  # where each token's end in it
        self._built: Capture | None = None

    def __len__(self) -> int:
        return len(self._token_ids)

    def add(
        self,
        token_id: int,
        logprob: float,
        top_logprobs: Sequence[float],
        p_tool_call: float = float("nan"),
    ) -> None:
        """Append one token.

        ``top_logprobs`` are the returned log-probs in any order, with or without the sampled one;
        fewer than k are fine, none makes the bounds of the token ``nan``. ``p_tool_call`` is the
        probability of the tool-call token, ``nan`` where it was not returned.
        """
        self._built = None
        self._token_ids.append(token_id)
        self._logprobs.append(logprob)
        self._p_tool_call.append(p_tool_call)
        self._values.extend(top_logprobs)
        self._ends.append(len(self._values))

    def add_many(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        top_logprobs: Sequence[float],
        counts: Sequence[int],
        p_tool_call: Sequence[float],
    ) -> None:
        """Append several tokens at once: `add`, with the alternatives of all in one flat list.

        Token i has the next ``counts[i]`` of ``top_logprobs``; the others have one item for each
        token. Raises ValueError where the lengths do not fit.
        """
        lengths = {len(token_ids), len(logprobs), len(counts), len(p_tool_call)}
        if len(lengths) != 1 or sum(counts) != len(top_logprobs):
            raise ValueError(
                f"{sorted(lengths)} tokens in the columns, {sum(counts)} alternatives counted"
                f" and {len(top_logprobs)} given; want columns of one length"
            )
        self._built = None
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)
        self._p_tool_call.extend(p_tool_call)
        offset = len(self._values)
        self._values.extend(top_logprobs)
        self._ends.extend(offset + end for end in itertools.accumulate(counts))

    def truncate(self, n: int) -> None:
        """Keep the first ``n`` tokens: the rest was sampled and thrown away."""
        if not 0 <= n <= len(self):
            raise ValueError(f"cannot keep {n} of {len(self)} tokens")
        self._built = None
        del self._values[self._ends[n - 1] if n else 0 :]
        for column in (self._token_ids, self._logprobs, self._p_tool_call, self._ends):
            del column[n:]

    def build(self) -> Capture:
        """The tokens so far. May be called again after more tokens."""
        if self._built is None:
            self._built = self._build()
        return self._built

    def _build(self) -> Capture:
        logprobs = np.array(self._logprobs, dtype=np.float64)
        bounds = self._bounds(logprobs)
        return Capture(
            token_ids=np.array(self._token_ids, dtype=np.int32),
            logprobs=np.maximum(logprobs, LOGPROB_FLOOR).astype(np.float32),
            entropy_lower=_round_down(bounds.lower),
            entropy_upper=-_round_down(-bounds.upper),
            margin=bounds.margin.astype(np.float32),
            tail_mass=bounds.tail_mass.astype(np.float32),
            p_tool_call=np.array(self._p_tool_call, dtype=np.float32),
            estimator=Estimator.TOPK,
            top_k=self.top_k,
        )

    def _bounds(self, logprobs: NDArray[np.float64]) -> TopkBounds:
        """Tokens with the same number of returned log-probs are worked out together."""
        values = np.array(self._values, dtype=np.float64)
        ends = np.array(self._ends, dtype=np.int64)
        counts = ends.copy()
        counts[1:] -= ends[:-1]
        if len(counts) and (counts == counts[0]).all():
            return topk_bounds(values.reshape(len(counts), -1), logprobs, self.vocab_size)
        columns = np.full((4, len(self)), np.nan)
        for count in np.unique(counts):
            rows = np.flatnonzero(counts == count)
            first = ends[rows] - count
            at: NDArray[np.int64] = first[:, None] + np.arange(count, dtype=np.int64)
            part = topk_bounds(values[at], logprobs[rows], self.vocab_size)
            columns[:, rows] = part.lower, part.upper, part.margin, part.tail_mass
        lower, upper, margin, tail_mass = columns
        return TopkBounds(lower=lower, upper=upper, margin=margin, tail_mass=tail_mass)


def _round_down(values: NDArray[np.float64]) -> FloatArray:
    """To float32, never upwards: a stored bound must stay a bound."""
    rounded = values.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded > values, below, rounded)

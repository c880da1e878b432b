"""Two ways to decide, compared at the same number of calls: interpolation and paired bootstrap.

Every run is over the same tasks in the same order, so a run is two vectors over tasks: was the task
answered correctly, and how many calls were made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run: per task whether it was correct (0 or 1) and how many calls it took."""

    correct: NDArray[np.float64]
    calls: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.correct.shape != self.calls.shape or self.correct.ndim != 1:
            raise ValueError(
                f"correct has shape {self.correct.shape}, calls {self.calls.shape}; want equal (T,)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Accuracy of a policy minus that of a method at as many calls, with its 95 % interval."""

    accuracy: float  # the method's
    difference: float
    lower: float
    upper: float


def accuracy_at(curve: Sequence[tuple[float, float]], calls: float) -> float:
    """Accuracy of a method at ``calls`` per task, from its (calls, accuracy) points.

    Linear between neighbouring points; outside of them the nearest point's.
    """
    if not curve:
        raise ValueError("a curve needs at least one point")
    ordered = sorted(curve)
    return float(np.interp(calls, [c for c, _ in ordered], [a for _, a in ordered]))


def compare(policy: Outcome, method: Sequence[Outcome], *, seed: int = 0) -> Difference:
    """The policy against a method swept over its threshold, at the policy's number of calls.

    The interval is the percentile bootstrap over tasks; every resample takes the same tasks from
    all runs and interpolates anew, so the uncertainty of the matching is in it.
    """
    runs = [policy, *method]
    if len({len(run.correct) for run in runs}) != 1:
        raise ValueError("all runs must be over the same tasks")
    correct = np.stack([run.correct for run in runs])
    calls = np.stack([run.calls for run in runs])
    observed = _difference(correct.mean(1), calls.mean(1))
    rng = np.random.default_rng(seed)
    n_tasks = correct.shape[1]
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        chosen = np.asarray(rng.integers(n_tasks, size=n_tasks), dtype=np.int64)
        found[i] = _difference(correct[:, chosen].mean(1), calls[:, chosen].mean(1))
    lower, upper = np.percentile(found, [2.5, 97.5])
    return Difference(
        accuracy=float(policy.correct.mean()) - observed,
        difference=observed,
        lower=float(lower),
        upper=float(upper),
    )


def _difference(accuracy: NDArray[np.float64], calls: NDArray[np.float64]) -> float:
    curve = list(zip(calls[1:].tolist(), accuracy[1:].tolist(), strict=True))
    return float(accuracy[0]) - accuracy_at(curve, float(calls[0]))

"""How well a number tells two classes apart: the area under the ROC curve, with an interval.

AUC = P(number of a right one > number of a wrong one), ties half. Its variance is DeLong's, and
Obuchowski's where samples come in clusters (the turns of one trajectory): the structural components
are summed over a cluster before they are squared.

Sources: DeLong, DeLong, Clarke-Pearson, Biometrics 1988; Obuchowski, Biometrics 1997, eq. 2–5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auc:
    """An area under the ROC curve with its interval, and how many samples of each class it has."""

    value: float
    lower: float
    upper: float
    n_right: int
    n_wrong: int


def auc(
    numbers: _Floats,
    right: NDArray[np.bool_],
    *,
    clusters: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
) -> Auc | None:
    """The AUC of ``numbers`` (high where a sample is expected to be right) for ``right``.

    All arrays have length N; ``clusters`` names the cluster of each sample, None: every one is
    its own. The interval is taken on the logit scale. Where no pair, or every pair, is out of order
    the variance is 0 and says nothing: then the end that is not known is that of as many successes
    in a row as the smaller class has clusters.

    None where one of the classes is empty. Raises ValueError on nan and on unequal lengths.
    """
    if numbers.shape != right.shape or (clusters is not None and clusters.shape != right.shape):
        raise ValueError("numbers, right and clusters must have one length")
    if np.isnan(numbers).any():
        raise ValueError("nan among the numbers: leave those samples out")
    if clusters is None:
        clusters = np.arange(len(right), dtype=np.int64)
    above, below = numbers[right], numbers[~right]
    if not len(above) or not len(below):
        return None
    of_right = _share_below(above, below)  # of each right one: the share of wrong ones below it
    of_wrong = 1.0 - _share_below(below, above)
    value = float(of_right.mean())
    sums_right, counts_right = _by_cluster(of_right, clusters[right], clusters)
    sums_wrong, counts_wrong = _by_cluster(of_wrong, clusters[~right], clusters)
    lower, upper = _limits(
        value,
        _variance(
            sums_right - counts_right * value,
            sums_wrong - counts_wrong * value,
            counts_right,
            counts_wrong,
        ),
        int(min((counts_right > 0).sum(), (counts_wrong > 0).sum())),
        confidence,
    )
    return Auc(value=value, lower=lower, upper=upper, n_right=len(above), n_wrong=len(below))


def _share_below(of: _Floats, among: _Floats) -> _Floats:
    """For each of ``of`` the share of ``among`` that is smaller, ties half."""
    ordered = np.sort(among)
    smaller = np.searchsorted(ordered, of, side="left")
    not_larger = np.searchsorted(ordered, of, side="right")
    return (smaller + not_larger) / (2.0 * len(among))


def _by_cluster(
    values: _Floats, own: NDArray[np.int64], every: NDArray[np.int64]
) -> tuple[_Floats, _Floats]:
    """Sum and count of ``values`` in each cluster of ``every``, in the order of their names."""
    names = np.unique(every)
    places = np.searchsorted(names, own)
    sums = np.bincount(places, weights=values, minlength=len(names)).astype(np.float64)
    return sums, np.bincount(places, minlength=len(names)).astype(np.float64)


def _variance(
    right: _Floats, wrong: _Floats, counts_right: _Floats, counts_wrong: _Floats
) -> float:
    """Obuchowski's variance from each cluster's centred sums; DeLong's for clusters of one."""
    n_right, n_wrong = counts_right.sum(), counts_wrong.sum()

    def spread(centred: _Floats, counts: _Floats) -> float:
        clusters = int((counts > 0).sum())
        if clusters < 2:
            return math.inf
        return float(clusters / (clusters - 1) * (centred**2).sum() / counts.sum() ** 2)

    clusters = len(right)
    shared = 2.0 * clusters / max(1, clusters - 1) * float((right * wrong).sum())
    return max(
        0.0,
        spread(right, counts_right) + spread(wrong, counts_wrong) + shared / (n_right * n_wrong),
    )


def _limits(value: float, variance: float, least: int, confidence: float) -> tuple[float, float]:
    outside = 1.0 - confidence
    if value in (0.0, 1.0):
        sure = (outside / 2.0) ** (1.0 / least)
        return (sure, 1.0) if value == 1.0 else (0.0, 1.0 - sure)
    if not math.isfinite(variance):
        return 0.0, 1.0
    slope = value * (1.0 - value)
    reach = NormalDist().inv_cdf(1.0 - outside / 2.0) * math.sqrt(variance) / slope
    centre = math.log(value / (1.0 - value))
    return _sigmoid(centre - reach), _sigmoid(centre + reach)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))

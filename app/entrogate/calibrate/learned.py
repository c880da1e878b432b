"""The signal `learned`: a logistic model of "the answer without the call is right".

Fitted by scikit-learn over the named numbers of each call (`gate.vector`), standardised; written
with its weights per unit of each number, so that the gate needs neither scikit-learn nor scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrogate.calibrate.paired import Sample
from entrogate.gate.schema import LearnedModel
from entrogate.gate.vector import FEATURES, TOOL_FEATURE, named_values
from entrogate.types import Features

STRENGTHS = (0.01, 0.1, 1.0)
"""Inverse strengths of the penalty that are tried."""

FOLDS = 5
_DIGITS = 6
_DRAFT = "draft_"
_SMALLEST_SPREAD = 1e-9

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The model, and for each sample one that was fitted without it, to judge the signal by."""

    model: LearnedModel
    fold_models: tuple[LearnedModel, ...]
    folds: NDArray[np.int64]  # of each sample

    def without(self, number: int) -> LearnedModel:
        """A model that has not seen the sample ``number``."""
        return self.fold_models[int(self.folds[number])]


def labelled(
    samples: Sequence[Sample],
) -> tuple[list[Features], NDArray[np.bool_], NDArray[np.int64]]:
    """Every call with a shadow: its features, whether the shadow is right, and its sample."""
    rows = [
        (features, turn.shadow.is_right, number)
        for number, sample in enumerate(samples)
        for turn in sample.turns
        if turn.shadow is not None
        for features in turn.features
    ]
    return (
        [features for features, _, _ in rows],
        np.array([right for _, right, _ in rows], dtype=np.bool_),
        np.array([number for _, _, number in rows], dtype=np.int64),
    )


def fit(samples: Sequence[Sample], *, drafts: bool, seed: int) -> Fit | None:
    """A model fitted to all calls of ``samples``; None where there is too little to fit.

    ``drafts``: whether it may use the draft, which costs its tokens. The strength of the penalty is
    the one with the best log-likelihood on folds that have no trajectory in common with the rest.
    Needs the extra `calibrate`.
    """
    calls, right, groups = labelled(samples)
    if len(set(groups.tolist())) < 2 * FOLDS or _one_class(right):
        return None
    names = _names(calls, drafts=drafts)
    if not names:
        return None
    values = _matrix(calls, names)
    folds = np.random.default_rng(seed).permutation(len(samples)) % FOLDS
    of_call = folds[groups]
    if any(_one_class(right[of_call != fold]) for fold in range(FOLDS)):
        return None
    best = max(STRENGTHS, key=lambda each: _fold_score(values, right, of_call, each))
    return Fit(
        model=_fitted(names, values, right, best),
        fold_models=tuple(
            _fitted(names, values[of_call != fold], right[of_call != fold], best)
            for fold in range(FOLDS)
        ),
        folds=folds,
    )


def _one_class(right: NDArray[np.bool_]) -> bool:
    return len(set(right.tolist())) < 2


def _names(calls: Sequence[Features], *, drafts: bool) -> list[str]:
    """The features that vary. What is unknown in most calls is left to the others."""
    tools = sorted({TOOL_FEATURE + features.tool for features in calls})
    wanted = [name for name in FEATURES if drafts or not name.startswith(_DRAFT)]
    wanted += tools if len(tools) > 1 else []
    values = _matrix(calls, wanted)
    known = np.isfinite(values)
    return [
        name
        for column, name in enumerate(wanted)
        if known[:, column].mean() > 0.5 and float(np.nanstd(values[:, column])) > _SMALLEST_SPREAD
    ]


def _matrix(calls: Sequence[Features], names: Sequence[str]) -> _Floats:
    """One row a call; nan where unknown, 0 for another tool."""
    rows = [named_values(features) for features in calls]

    def number(row: dict[str, float | None], name: str) -> float:
        found = row.get(name)
        if found is None:
            return 0.0 if name.startswith(TOOL_FEATURE) else math.nan
        return found

    return np.array([[number(row, name) for name in names] for row in rows], dtype=np.float64)


def _scales(values: _Floats) -> tuple[_Floats, _Floats]:
    spread = np.nanstd(values, axis=0)
    return np.nanmean(values, axis=0), np.where(spread > _SMALLEST_SPREAD, spread, 1.0)


def _classifier(values: _Floats, right: NDArray[np.bool_], strength: float) -> Any:
    from sklearn import linear_model  # pyright: ignore[reportMissingTypeStubs]

    classifier: Any = linear_model.LogisticRegression(C=strength, max_iter=2000)
    return classifier.fit(values, right)


def _standard(values: _Floats, mean: _Floats, spread: _Floats) -> _Floats:
    return np.where(np.isfinite(values), (values - mean) / spread, 0.0)


def _fold_score(
    values: _Floats, right: NDArray[np.bool_], folds: NDArray[np.int64], strength: float
) -> float:
    """Mean log-likelihood of the calls, each by a model fitted without its trajectory."""
    total = 0.0
    for fold in range(FOLDS):
        inside, rest = folds == fold, folds != fold
        if not inside.any():
            continue
        mean, spread = _scales(values[rest])
        classifier = _classifier(_standard(values[rest], mean, spread), right[rest], strength)
        found = classifier.predict_log_proba(_standard(values[inside], mean, spread))
        total += float(np.where(right[inside], found[:, 1], found[:, 0]).sum())
    return total / len(right)


def _fitted(
    names: Sequence[str], values: _Floats, right: NDArray[np.bool_], strength: float
) -> LearnedModel:
    """The model with its weights per unit: w · (x − mean) / spread = (w / spread) · x − …"""
    mean, spread = _scales(values)
    classifier = _classifier(_standard(values, mean, spread), right, strength)
    weights = classifier.coef_[0] / spread
    intercept = float(classifier.intercept_[0] - (weights * mean).sum())
    return LearnedModel(
        intercept=_rounded(intercept),
        weights={name: _rounded(weight) for name, weight in zip(names, weights, strict=True)},
        missing={
            name: _rounded(middle)
            for name, middle in zip(names, mean, strict=True)
            if not name.startswith(TOOL_FEATURE)
        },
    )


def _rounded(number: float) -> float:
    return float(f"{float(number):.{_DIGITS}g}")

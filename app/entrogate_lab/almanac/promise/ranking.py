"""Signals by AUC, and what each would save by itself at the promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from entrogate.calibrate.choose import calibrate
from entrogate.calibrate.paired import Sample
from entrogate.calibrate.result import Options
from entrogate.gate.schema import Policy


def rank(samples: Sequence[Sample], base: Policy, options: Options) -> list[dict[str, Any]]:
    """Each signal with its AUC on the certifying part, the best first.

    ``threshold`` is the one that was certified for that signal alone, None where none was; then
    ``saved`` and ``loss`` are 0. Signals that have no value, or no wrong answers to tell from right
    ones, are left out.
    """
    ranked: list[dict[str, Any]] = []
    for signal in options.signals:
        found = calibrate(samples, base, replace(options, signals=(signal,)))
        row = found.rows[0]
        judged = next((each for each in row.judged if each.signal.statistic is signal), None)
        if judged is None or judged.auc is None:
            continue
        total = found.total
        ranked.append(
            {
                "signal": signal.value,
                "auc": judged.auc.value,
                "auc_ci": [judged.auc.lower, judged.auc.upper],
                "threshold": row.threshold,
                "saved": 0.0 if total is None else total.saved.value,
                "saved_ci": (
                    [0.0, 0.0] if total is None else [total.saved.lower, total.saved.upper]
                ),
                "loss": 0.0 if total is None else total.losses / total.n,
                "loss_upper": 0.0 if total is None else total.upper,
                "gain": 0.0 if total is None else total.gains / total.n,
                "trajectories": row.n,
            }
        )
    return sorted(ranked, key=lambda each: -float(each["auc"]))

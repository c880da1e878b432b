"""Options and results of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entrogate.gate.schema import Policy, Signal, Statistic
from entrogate.risk.auc import Auc
from entrogate.risk.ltt import check_levels

SIGNALS = tuple(each for each in Statistic if each is not Statistic.UNIFORM)
"""Every statistic that may be chosen, the learned one included."""

NEARLY = 0.01
"""Savings that differ by less than this share of the calls count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is promised, and how the choice is made.

    ``chosen_on`` is the share of the samples on which the signal is chosen; the rest certifies.
    """

    max_loss: float = 0.05
    delta: float = 0.1
    per_tool: bool = False
    signals: tuple[Statistic, ...] = SIGNALS
    draft_tokens: int = 8
    chosen_on: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_levels(self.max_loss, self.delta)
        if not self.signals or Statistic.UNIFORM in self.signals:
            raise ValueError("want at least one signal, and not 'uniform', which is random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of all calls with its 95 % interval."""

    value: float
    lower: float
    upper: float


NOTHING = Share(value=0.0, lower=0.0, upper=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What thresholds do to some samples; each array has one item a threshold."""

    thresholds: NDArray[np.float64]  # as levels, strictest first
    n: int
    losses: NDArray[np.int64]
    gains: NDArray[np.int64]
    saved: NDArray[np.float64]  # share of all calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One signal: how well it separates right from wrong answers, and its risk curve.

    ``auc`` and ``certifying`` are of the certifying part; the curve of a signal that was not chosen
    is for looking at and certifies nothing. ``chosen_saving`` is what it would have saved at the
    promise on the choosing part.
    """

    signal: Signal
    auc: Auc | None
    certifying: Curve
    chosen_saving: float
    n_unknown: int  # turns of the certifying part for which it has no value


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found for one tool, or for all together (``tool`` None).

    ``n`` trajectories certified, ``n_with_tool`` of them call the tool. ``losses`` and ``upper``
    are those of ``threshold``, or, where nothing was certified, of the strictest one.
    """

    tool: str | None
    max_loss: float
    delta: float
    n: int
    n_with_tool: int
    judged: tuple[Judged, ...]
    needs: int | None  # further trajectories; None: no number is expected to be enough
    any_right: bool = True  # some answer without a call is right: there is something to save
    signal: Signal | None = None
    threshold: float | None = None
    losses: int = 0
    upper: float = 1.0
    gains: int = 0
    saved: Share = NOTHING

    @property
    def certified(self) -> bool:
        """Whether the promise holds with a threshold."""
        return self.threshold is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The whole policy on the certifying part, by the gate's own decisions."""

    n: int
    losses: int
    upper: float
    gains: int
    called_again: int
    skipped: int  # trajectories in which a call was suppressed
    right_before: int
    right_after: int
    calls: int
    saved: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The outcome: ``policy`` is None where nothing could be certified."""

    options: Options
    n: int  # samples, both parts
    rows: tuple[Row, ...]
    policy: Policy | None
    total: Total | None
    certified_on: int

    @property
    def needs(self) -> int | None:
        """The fewest further trajectories after which something may be certified."""
        known = [row.needs for row in self.rows if row.needs is not None]
        return min(known) if known else None

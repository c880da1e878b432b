"""At which thresholds which turn is the first to be suppressed, for all thresholds at once.

A signal's number is turned so that low means certain: its *level*. A turn is suppressed at a
threshold above its level, so it is the first of its trajectory exactly where the threshold is above
its level and not above that of any turn before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entrogate.calibrate.paired import CallTurn, Sample
from entrogate.calibrate.result import Curve
from entrogate.calibrate.rules import with_threshold
from entrogate.gate.reasons import Reason
from entrogate.gate.rules import call_value, propose
from entrogate.gate.schema import Policy, Signal
from entrogate.types import Action, Features

LOOSEST = 1e300
MOST_THRESHOLDS = 100
_DIGITS = 6  # of a threshold: what a person reads in the policy file is what was certified


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """The turns with calls of some samples under one signal; every array but ``starts`` and
    ``calls`` has one item a turn."""

    level: NDArray[np.float64]  # -inf: suppressed by other rules; inf: never
    before: NDArray[np.float64]  # the lowest level of the turns before it; inf: none
    loss: NDArray[np.bool_]  # if this is the first turn that is suppressed
    gain: NDArray[np.bool_]
    right: NDArray[np.bool_]  # the shadow is right
    saved: NDArray[np.int64]  # calls
    trajectory: NDArray[np.int64]
    starts: NDArray[np.int64]  # the first turn of each sample
    calls: NDArray[np.int64]  # of each sample

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.calls)


def cross(
    samples: Sequence[Sample],
    policy: Policy,
    signal: Signal,
    tools: Sequence[str],
    *,
    tool: str | None = None,
) -> Crossings:
    """The levels of all turns of ``samples`` under the other rules of ``policy``.

    ``tools`` are those whose threshold is being chosen. With ``tool``, one of them, only turns
    whose first call is of it count, as if the calls of the others were certain: what all tools
    lose together is then at most the sum of what each loses (`choose`).
    """
    strict = with_threshold(policy, tools, signal, None)
    loose = with_threshold(
        policy, tools, signal, -LOOSEST if signal.statistic.certain_when_above else LOOSEST
    )

    def level(features: Features) -> float:
        if propose(strict, features, 1.0).action is Action.SUPPRESS:
            return -math.inf
        if tool is not None and features.tool != tool:
            return -math.inf if features.tool in tools else math.inf
        proposal = propose(loose, features, 1.0)
        if proposal.action is not Action.SUPPRESS or proposal.reason is not Reason.CERTAIN:
            return math.inf
        value = call_value(signal, features)
        if value is None:
            return math.inf
        return -value if signal.statistic.certain_when_above else value

    return _gather(samples, level, tool)


def _gather(
    samples: Sequence[Sample], level_of: Callable[[Features], float], tool: str | None
) -> Crossings:
    rows: list[tuple[float, float, bool, bool, bool, int, int]] = []
    starts: list[int] = []
    for number, sample in enumerate(samples):
        starts.append(len(rows))
        lowest = math.inf
        left = sample.n_calls
        for turn in sample.turns:
            level, ends = _turn_level(turn, level_of, tool)
            right = turn.shadow is not None and turn.shadow.is_right
            loss, gain = sample.is_right and not right, right and not sample.is_right
            before = lowest if ends else math.inf
            rows.append((level, before, loss, gain, right, left, number))
            lowest = min(lowest, level) if ends else lowest
            left -= len(turn.features)
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    return Crossings(
        level=np.array(columns[0], dtype=np.float64),
        before=np.array(columns[1], dtype=np.float64),
        loss=np.array(columns[2], dtype=np.bool_),
        gain=np.array(columns[3], dtype=np.bool_),
        right=np.array(columns[4], dtype=np.bool_),
        saved=np.array(columns[5], dtype=np.int64),
        trajectory=np.array(columns[6], dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        calls=np.array([sample.n_calls for sample in samples], dtype=np.int64),
    )


def _turn_level(
    turn: CallTurn, level_of: Callable[[Features], float], tool: str | None
) -> tuple[float, bool]:
    """The level of a turn, and whether its suppression surely ends the trajectory.

    The calls of a turn are suppressed together or not at all, so the least certain one decides. It
    does not surely end where calls of other tools have a say in it.
    """
    if turn.shadow is None or (tool is not None and turn.features[0].tool != tool):
        return math.inf, True
    level = max(level_of(features) for features in turn.features)
    return level, tool is None or all(each.tool == tool for each in turn.features)


def thresholds(crossings: Crossings) -> NDArray[np.float64]:
    """At most `MOST_THRESHOLDS` levels at which something changes, the strictest first.

    They lie between the levels of turns, at equal shares of them, rounded to six digits.
    """
    levels = crossings.level[np.isfinite(crossings.level) & (crossings.level < crossings.before)]
    distinct = np.unique(levels)
    if not len(distinct):
        return distinct
    beyond = distinct[-1] + max(1e-6, abs(distinct[-1]) * 1e-3)
    between = np.append((distinct[:-1] + distinct[1:]) / 2, beyond)
    if len(between) > MOST_THRESHOLDS:
        places = np.linspace(0, len(between) - 1, MOST_THRESHOLDS).round().astype(int)
        between = between[places]
    return np.unique([float(f"{each:.{_DIGITS}g}") for each in between])


def curve(crossings: Crossings, levels: NDArray[np.float64]) -> Curve:
    """Losses, gains and savings of ``crossings`` at each of ``levels``."""
    first = (crossings.level < levels[:, None]) & (levels[:, None] <= crossings.before)

    def samples_with(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        if not marked.shape[1]:
            return np.zeros(len(levels), dtype=np.int64)
        any_of = np.logical_or.reduceat(marked, crossings.starts, axis=1)
        return any_of.sum(axis=1).astype(np.int64)

    total = max(1, int(crossings.calls.sum()))
    return Curve(
        thresholds=levels,
        n=crossings.n,
        losses=samples_with(first & crossings.loss),
        gains=samples_with(first & crossings.gain),
        saved=(first * crossings.saved).sum(axis=1) / total,
    )


def saved_calls(crossings: Crossings, level: float) -> NDArray[np.float64]:
    """For each sample, the calls that are saved at one threshold."""
    first = (crossings.level < level) & (level <= crossings.before)
    own = np.where(first, crossings.saved, 0).astype(np.float64)
    return np.minimum(
        np.bincount(crossings.trajectory, weights=own, minlength=crossings.n), crossings.calls
    ).astype(np.float64)


def taken(crossings: Crossings, numbers: NDArray[np.int64]) -> Crossings:
    """The crossings of some of the samples, in the order of ``numbers``."""
    ends = np.append(crossings.starts[1:], len(crossings.level))
    lengths = (ends - crossings.starts)[numbers]
    starts = np.cumsum(lengths) - lengths
    shifts: NDArray[np.int64] = np.repeat(crossings.starts[numbers] - starts, lengths)
    turns = shifts + np.arange(len(shifts))
    return Crossings(
        level=crossings.level[turns],
        before=crossings.before[turns],
        loss=crossings.loss[turns],
        gain=crossings.gain[turns],
        right=crossings.right[turns],
        saved=crossings.saved[turns],
        trajectory=np.repeat(np.arange(len(numbers)), lengths),
        starts=starts,
        calls=crossings.calls[numbers],
    )


def joined(parts: Sequence[Crossings]) -> Crossings:
    """The crossings of several groups of samples as those of one."""
    turns = np.cumsum([0, *(len(part.level) for part in parts)])
    counts = np.cumsum([0, *(part.n for part in parts)])

    def together(name: str, shifts: Sequence[int] | None = None) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if shifts is not None:
            arrays = [each + shift for each, shift in zip(arrays, shifts, strict=False)]
        return np.concatenate(arrays)

    return Crossings(
        level=together("level"), before=together("before"), loss=together("loss"),
        gain=together("gain"), right=together("right"), saved=together("saved"),
        trajectory=together("trajectory", counts.tolist()),
        starts=together("starts", turns.tolist()), calls=together("calls"),
    )  # fmt: skip

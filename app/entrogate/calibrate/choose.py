"""From samples to a policy with a promise: the signal on one part, the threshold on the other.

The promise: a trajectory is right as observed and wrong without the suppressed call in at most ε
(`max_loss`) of all cases, with confidence 1 − δ. On the first part of the samples the signal is
chosen that saves most calls at this promise, and its candidate thresholds are laid out. On the
second part, which none of that has seen, they are tested by Learn-then-Test (`risk.ltt`).

With a threshold of its own for each of m tools, tool t is tested at δ / m for a share w_t · ε of
the loss; the shares w_t add up to 1 and go by how many trajectories of the first part call the
tool. All m hold together with confidence 1 − δ (Bonferroni), and the policy loses at most what its
tools lose one by one, hence at most ε: the first turn that is suppressed under all thresholds is
also the first of its tool's turns that is (`crossings.cross` says what becomes of mixed turns).

Pure: samples in, a policy out. The model `learned` needs the extra `calibrate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from entrogate.calibrate.crossings import (
    Crossings,
    cross,
    curve,
    joined,
    saved_calls,
    taken,
    thresholds,
)
from entrogate.calibrate.learned import Fit, fit
from entrogate.calibrate.paired import Sample, split, under
from entrogate.calibrate.result import NEARLY, Calibrated, Judged, Options, Row, Share, Total
from entrogate.calibrate.rules import certified_policy, gated_tools
from entrogate.gate.schema import Policy, Signal, Statistic
from entrogate.risk.auc import Auc, auc
from entrogate.risk.ltt import certify, samples_needed, upper_bound
from entrogate.risk.means import ratio_interval

_Numbers = NDArray[np.int64]


class Pool:
    """Samples under one base policy. What it works out of them serves any number of calibrations.

    Raises ValueError where no tool that the policy gates is called in the samples, and for a policy
    that forces calls: its `force` compares the signal with a threshold of its own.
    """

    def __init__(self, samples: Sequence[Sample], base: Policy) -> None:
        if base.force is not None:
            raise ValueError(
                f"the policy {base.name!r} has 'force', which compares the same signal with a"
                " threshold of its own: remove it"
            )
        called = {
            each.tool for sample in samples for turn in sample.turns for each in turn.features
        }
        self.samples = list(samples)
        self.base = base
        self.tools = [tool for tool in gated_tools(base) if tool in called]
        if not self.tools:
            raise ValueError(
                f"the policy {base.name!r} gates none of the tools that are called: "
                f"{', '.join(sorted(called)) or 'there are no calls'}"
            )
        self._known: dict[tuple[str, str | None], Crossings] = {}

    def of(self, numbers: _Numbers) -> list[Sample]:
        """The samples with these numbers."""
        own: list[int] = numbers.tolist()
        return [self.samples[number] for number in own]

    def crossings(self, signal: Signal, tool: str | None, numbers: _Numbers) -> Crossings:
        """Those of the samples with these numbers under ``signal``."""
        if signal.model is not None:
            return cross(self.of(numbers), self.base, signal, self.tools, tool=tool)
        key = (signal.model_dump_json(), tool)
        if key not in self._known:
            self._known[key] = cross(self.samples, self.base, signal, self.tools, tool=tool)
        return taken(self._known[key], numbers)

    def calibrate(
        self, options: Options, numbers: Sequence[int] | None = None, *, drawn: bool = False
    ) -> Calibrated:
        """As `calibrate`, over the samples with these numbers (None: all of them).

        ``drawn``: the numbers are independent draws, with replacement. Each of them then is a
        sample of its own, and they are split in the order in which they were drawn.
        """
        places = np.arange(len(self.samples)) if numbers is None else np.array(numbers, np.int64)
        if drawn:
            first = round(options.chosen_on * len(places))
            choosing, certifying = places[:first], places[first:]
        else:
            parts = split(self.of(places), options.chosen_on, options.seed)
            choosing, certifying = (places[np.array(part, dtype=np.int64)] for part in parts)
        work = _Work(pool=self, options=options, choosing=choosing, certifying=certifying)
        shares = work.shares() if options.per_tool else {None: 1.0}
        rows = tuple(
            work.row(tool, options.max_loss * share, options.delta / len(shares))
            for tool, share in shares.items()
        )
        certified = [row for row in rows if row.certified]
        policy = None
        if certified:
            pooled = not options.per_tool
            policy = certified_policy(self.base, self.tools, certified, pooled=pooled)
        return Calibrated(
            options=options,
            n=len(places),
            rows=rows,
            policy=policy,
            total=None if policy is None else total(policy, self.of(certifying), options.delta),
            certified_on=len(certifying),
        )


def calibrate(samples: Sequence[Sample], base: Policy, options: Options) -> Calibrated:
    """Choose signals and certify thresholds for the tools of ``base`` that may be gated.

    Everything else of ``base`` stays, and counts: what its budgets suppress is part of the loss.
    Samples should be independent (`one_per_task`). Raises ValueError as `Pool` does.
    """
    return Pool(samples, base).calibrate(options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A signal on both parts; ``choosing`` is its AUC on the part that may choose."""

    signal: Signal
    choosing: Auc | None
    crossings: Crossings  # on the certifying part
    judged: Judged


@dataclass(slots=True, kw_only=True)
class _Work:
    """One calibration: its two parts, by the numbers of their samples."""

    pool: Pool
    options: Options
    choosing: _Numbers
    certifying: _Numbers
    _fits: list[Fit | None] = field(default_factory=list["Fit | None"])

    def shares(self) -> dict[str | None, float]:
        """Of each tool, its share of the loss: by how many trajectories of the choosing part call
        it, and one more each, so that none gets nothing."""
        counts = {tool: 1 + self._with_tool(tool, self.choosing) for tool in self.pool.tools}
        return {tool: count / sum(counts.values()) for tool, count in counts.items()}

    def _with_tool(self, tool: str | None, numbers: _Numbers) -> int:
        wanted = self.pool.tools if tool is None else [tool]
        return sum(
            any(each.tool in wanted for turn in sample.turns for each in turn.features)
            for sample in self.pool.of(numbers)
        )

    def _any_right(self, tool: str | None) -> bool:
        """Whether any shadow of the tool's turns is right, in either part."""
        return any(
            turn.shadow is not None
            and turn.shadow.is_right
            and (tool is None or any(each.tool == tool for each in turn.features))
            for part in (self.choosing, self.certifying)
            for sample in self.pool.of(part)
            for turn in sample.turns
        )

    def row(self, tool: str | None, max_loss: float, delta: float) -> Row:
        """The best signal for ``tool`` (None: all), and its certified threshold."""
        tried = (
            self._candidate(statistic, tool, max_loss, delta) for statistic in self.options.signals
        )
        candidates = [found for found in tried if found is not None]
        best = _best(candidates)
        n = len(self.certifying)
        any_right = self._any_right(tool)
        least = samples_needed(0, 0, max_loss=max_loss, delta=delta)
        row = Row(
            tool=tool,
            max_loss=max_loss,
            delta=delta,
            n=n,
            n_with_tool=self._with_tool(tool, self.certifying),
            judged=tuple(each.judged for each in candidates),
            needs=self._further(least if any_right else None),
            any_right=any_right,
        )
        if best is None or n == 0:
            return row
        found = best.judged.certifying
        index = certify(found.losses.tolist(), n, max_loss=max_loss, delta=delta).index
        at = index or 0
        needed = samples_needed(int(found.losses[0]), n, max_loss=max_loss, delta=delta)
        sign = -1.0 if best.signal.statistic.certain_when_above else 1.0
        return replace(
            row,
            signal=best.signal,
            threshold=None if index is None else sign * float(found.thresholds[index]),
            losses=int(found.losses[at]),
            upper=upper_bound(int(found.losses[at]), n, delta),
            gains=int(found.gains[at]),
            saved=_saved(best.crossings, float(found.thresholds[at])),
            needs=0 if index is not None else self._further(needed if any_right else None),
        )

    def _further(self, needed: int | None) -> int | None:
        """Trajectories still to be collected for ``needed`` in the certifying part."""
        if needed is None:
            return None
        missing = needed - len(self.certifying)
        return max(1, math.ceil(missing / (1.0 - self.options.chosen_on)))

    def _candidate(
        self, statistic: Statistic, tool: str | None, max_loss: float, delta: float
    ) -> _Candidate | None:
        """None where the signal has no value for any turn that it could suppress."""
        signal = self._signal(statistic)
        if signal is None:
            return None
        choosing = self._honest(signal, tool)
        levels = thresholds(choosing)
        if not len(levels):
            return None
        chosen = curve(choosing, levels)
        index = certify(chosen.losses.tolist(), chosen.n, max_loss=max_loss, delta=delta).index
        certifying = self.pool.crossings(signal, tool, self.certifying)
        return _Candidate(
            signal=signal,
            choosing=_auc(choosing),
            crossings=certifying,
            judged=Judged(
                signal=signal,
                auc=_auc(certifying),
                certifying=curve(certifying, levels),
                chosen_saving=0.0 if index is None else float(chosen.saved[index]),
                n_unknown=int((certifying.level == math.inf).sum()),
            ),
        )

    def _signal(self, statistic: Statistic) -> Signal | None:
        """The signal of a statistic, with the base policy's bound and shortest segment."""
        base = self.pool.base.signal
        values: dict[str, object] = {}
        if statistic is Statistic.LEARNED:
            fitted = self._fitted()
            if fitted is None:
                return None
            values["model"] = fitted.model
        if statistic.is_draft or statistic is Statistic.LEARNED:
            values["draft_tokens"] = self.options.draft_tokens
        else:
            values["min_tokens"] = base.min_tokens
        if statistic.is_entropy:
            values["bound"] = base.bound
        return Signal.model_validate({"statistic": statistic, **values})

    def _fitted(self) -> Fit | None:
        if not self._fits:
            drafts = any(each.is_draft for each in self.options.signals)
            samples = self.pool.of(self.choosing)
            self._fits.append(fit(samples, drafts=drafts, seed=self.options.seed))
        return self._fits[0]

    def _honest(self, signal: Signal, tool: str | None) -> Crossings:
        """The choosing part under ``signal``; under `learned` each sample by a model without it."""
        fitted = self._fitted() if signal.model is not None else None
        if fitted is None:
            return self.pool.crossings(signal, tool, self.choosing)
        parts = [
            self.pool.crossings(
                signal.model_copy(update={"model": model}),
                tool,
                self.choosing[fitted.folds == fold],
            )
            for fold, model in enumerate(fitted.fold_models)
        ]
        return joined([part for part in parts if part.n])


def _best(candidates: Sequence[_Candidate]) -> _Candidate | None:
    """What saves most at the promise.

    Of those within `NEARLY` of it the plainest: a statistic of the segment costs nothing, a draft
    its tokens, a learned model a reader's time. Where none saves anything, what tells best.
    """
    most = max((each.judged.chosen_saving for each in candidates), default=0.0)
    if most == 0.0:
        return max(candidates, key=_area, default=None)
    near = [each for each in candidates if each.judged.chosen_saving >= most - NEARLY]
    return min(near, key=lambda each: (_price(each.signal), -each.judged.chosen_saving))


def _area(candidate: _Candidate) -> float:
    return 0.5 if candidate.choosing is None else candidate.choosing.value


def _price(signal: Signal) -> int:
    if signal.statistic is Statistic.LEARNED:
        return 2
    return 1 if signal.needs_draft else 0


def _auc(crossings: Crossings) -> Auc | None:
    """Of all turns with a value: does certainty tell whether the shadow is right?"""
    known = np.isfinite(crossings.level)
    return auc(
        -crossings.level[known], crossings.right[known], clusters=crossings.trajectory[known]
    )


def _saved(crossings: Crossings, level: float) -> Share:
    """The calls saved at one level."""
    return _share(saved_calls(crossings, level), crossings.calls.astype(np.float64))


def total(policy: Policy, samples: Sequence[Sample], delta: float) -> Total:
    """What ``policy`` does to ``samples``, by the gate's own decisions."""
    ended = [under(policy, sample) for sample in samples]
    calls = np.array([sample.n_calls for sample in samples], dtype=np.float64)
    saved = np.array([each.saved for each in ended], dtype=np.float64)
    losses = sum(each.loss for each in ended)
    return Total(
        n=len(samples),
        losses=losses,
        upper=upper_bound(losses, len(samples), delta),
        gains=sum(each.gain for each in ended),
        called_again=sum(each.called_again for each in ended),
        skipped=sum(each.saved > 0 for each in ended),
        right_before=sum(sample.is_right for sample in samples),
        right_after=sum(each.right for each in ended),
        calls=int(calls.sum()),
        saved=_share(saved, calls),
    )


def _share(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> Share:
    """Σ parts / Σ wholes with a 95 % interval by linearisation over trajectories."""
    lower, upper = ratio_interval(parts.tolist(), wholes.tolist()) or (0.0, 1.0)
    return Share(value=float(parts.sum() / wholes.sum()), lower=lower, upper=upper)

"""How often a calibration breaks its promise, over many calibrations from resampled trajectories.

A calibration promises that at most ε (`max_loss`) of the trajectories are lost, and may be wrong
about it with probability δ. Two ways to draw the samples of one calibration from a pool:

- `POPULATION`: independently, with replacement. The pool is then the population: what a policy
  loses in it is known exactly, and calibrations are independent of each other.
- `SPLIT`: without replacement; the policy is judged on the trajectories that were not drawn.

Either way they can be judged on trajectories of another log instead, which no calibration draws.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from entrogate.calibrate.choose import Pool
from entrogate.calibrate.paired import Sample, under
from entrogate.calibrate.result import Options
from entrogate.gate.schema import Policy
from entrogate.risk.ltt import binomial_cdf, interval
from entrogate_lab.almanac.intervals import mean, percentile

_CONFIDENCE_LEFT = 0.05

Report = Callable[[int, int], None]
"""Called with the calibrations made and those to be made."""


class Draw(StrEnum):
    """How the samples of one calibration are drawn from the pool."""

    POPULATION = "population"
    SPLIT = "split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """One calibration: what its policy does to trajectories it was not chosen for.

    ``signal`` is None where nothing was certified: then no call is suppressed and nothing is lost.
    Shares are of the trajectories, ``saved`` is that of the calls.
    """

    signal: str | None
    threshold: float | None
    loss: float
    gain: float
    saved: float
    judged_on: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Many calibrations under one promise."""

    draw: Draw
    pool: int
    size: int
    max_loss: float
    delta: float
    rounds: tuple[Realised, ...]

    @property
    def exceeded(self) -> int:
        """Calibrations whose policy loses more than it promised."""
        return sum(each.loss > self.max_loss for each in self.rounds)

    @property
    def p_value(self) -> float:
        """P(at least so many | each breaks its promise with probability δ); small: it fails."""
        return 1.0 - binomial_cdf(self.exceeded - 1, len(self.rounds), self.delta)

    @property
    def holds(self) -> bool:
        """Whether the count is one that δ allows, at the 5 % level."""
        return self.p_value >= _CONFIDENCE_LEFT

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON; the calibrations themselves under ``rounds``."""
        certified = [each for each in self.rounds if each.signal is not None]
        losses = [each.loss for each in certified]
        return {
            "draw": self.draw.value,
            "pool": self.pool,
            "size": self.size,
            "max_loss": self.max_loss,
            "delta": self.delta,
            "calibrations": len(self.rounds),
            "certified": len(certified),
            "exceeded": self.exceeded,
            "exceeded_ci": list(interval(self.exceeded, len(self.rounds), _CONFIDENCE_LEFT)),
            "p_value": self.p_value,
            "holds": self.holds,
            "loss": {
                "mean": mean(losses),
                "p90": percentile(losses, 0.9),
                "max": max(losses, default=0.0),
            },
            "gain": mean([each.gain for each in certified]),
            "saved": mean([each.saved for each in certified]),
            "signals": dict(Counter(each.signal for each in certified).most_common()),
            "rounds": [asdict(each) for each in self.rounds],
        }


def hold(
    pool: Sequence[Sample],
    base: Policy,
    options: Options,
    *,
    draw: Draw,
    size: int,
    rounds: int,
    seed: int,
    report: Report,
    fresh: Sequence[Sample] | None = None,
) -> Holding:
    """Calibrate ``rounds`` times on ``size`` samples of ``pool``. Raises ValueError if too few.

    Policies are judged on ``fresh`` where it is given.
    """
    if draw is Draw.SPLIT and size > len(pool) - (fresh is None):
        left = "leave none to judge on" if size == len(pool) else "cannot be drawn"
        raise ValueError(f"{size} of {len(pool)} trajectories {left}: a smaller --size")
    calibrating = Pool(pool, base)
    done: list[Realised] = []
    for number in range(rounds):
        rng = random.Random(f"promise-{seed}-{number}")
        chosen, rest = _drawn(len(pool), draw, size, rng)
        found = calibrating.calibrate(
            replace(options, seed=number), chosen, drawn=draw is Draw.POPULATION
        )
        judges = [pool[at] for at in rest] if fresh is None else fresh
        done.append(_realised(found.policy, _signal_of(found.policy), judges))
        report(number + 1, rounds)
    return Holding(
        draw=draw,
        pool=len(pool),
        size=size,
        max_loss=options.max_loss,
        delta=options.delta,
        rounds=tuple(done),
    )


def _drawn(
    count: int, draw: Draw, size: int, rng: random.Random
) -> tuple[list[int], Sequence[int]]:
    """The numbers of the samples of one calibration, and of those to judge on."""
    if draw is Draw.SPLIT:
        order = rng.sample(range(count), count)
        return order[:size], order[size:]
    return rng.choices(range(count), k=size), range(count)


def _signal_of(policy: Policy | None) -> tuple[str, float] | None:
    if policy is None:
        return None
    for tool in policy.tools:
        rule = policy.rule(tool)
        if rule is not None and rule.threshold is not None and not rule.side_effects:
            return policy.signal_for(tool).statistic.value, rule.threshold
    return None


def _realised(
    policy: Policy | None, signal: tuple[str, float] | None, fresh: Sequence[Sample]
) -> Realised:
    if policy is None:
        return Realised(
            signal=None, threshold=None, loss=0.0, gain=0.0, saved=0.0, judged_on=len(fresh)
        )
    ended = [under(policy, sample) for sample in fresh]
    calls = sum(sample.n_calls for sample in fresh)
    return Realised(
        signal=None if signal is None else signal[0],
        threshold=None if signal is None else signal[1],
        loss=sum(each.loss for each in ended) / len(fresh),
        gain=sum(each.gain for each in ended) / len(fresh),
        saved=sum(each.saved for each in ended) / calls,
        judged_on=len(fresh),
    )

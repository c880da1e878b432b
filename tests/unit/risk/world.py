"""A world of gated calls whose truth can be simulated: used where an estimator is to be checked.

A trajectory has up to `TURNS` turns. In each the model is uncertain by ``signal`` and would call
with probability ``p``. A call that goes through costs 1 and helps; without a call the model answers
and is right the more often the more calls it made and the lower its signal was. A gate masks where
the logging policy suppresses, whether or not a call would have been sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entrogate.risk.offpolicy import Log

TURNS = 4
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A log and what was earned in it."""

    log: Log
    calls: Floats  # (n, T + 1)
    outcome: Floats  # (n, T + 1), earned at the end
    states: Floats
    taken: Floats  # (n, T, 2): allow, suppress
    target: Floats


def suppressing(signal: Floats, threshold: float, epsilon: float) -> Floats:
    """Probability that a policy suppresses a call after this signal."""
    return np.where(signal < threshold, 1.0 - epsilon, epsilon)


def simulate(
    random: np.random.Generator,
    n: int,
    *,
    threshold: float,
    epsilon: float,
    target: float,
    masked: bool = True,
) -> Simulated:
    """``n`` trajectories under a threshold, weighted for the policy with threshold ``target``.

    Not ``masked``: every call is sampled before it is decided upon.
    """
    shape = (n, TURNS)
    ratios, tilted, presence = np.ones(shape), np.zeros(shape), np.zeros(shape)
    calls, outcome = np.zeros((n, TURNS + 1)), np.zeros((n, TURNS + 1))
    states = np.zeros((n, TURNS, 2))
    taken, wanted = np.zeros((n, TURNS, 2)), np.zeros((n, TURNS, 2))
    alive, made = np.ones(n, dtype=bool), np.zeros(n)
    for t in range(TURNS):
        signal = random.uniform(0.0, 3.0, n)
        p = np.clip(0.25 + 0.25 * signal, 0.0, 0.97) if masked else np.ones(n)
        acts = random.random(n) < suppressing(signal, threshold, epsilon)
        samples = random.random(n) < p
        decided = alive & (acts | samples)
        b = suppressing(signal, threshold, epsilon)
        pi = suppressing(signal, target, 0.0)
        ratio = np.where(
            acts, pi / np.where(b > 0, b, 1.0), (1.0 - pi) / np.where(b < 1, 1.0 - b, 1.0)
        )
        weight = np.where(acts, p, 1.0)
        presence[:, t] = np.where(decided, weight, 0.0)
        tilted[:, t] = presence[:, t] * ratio
        ratios[:, t] = np.where(decided, 1.0 - weight + weight * ratio, 1.0)
        through = alive & samples & ~acts
        calls[:, t + 1] = through
        states[:, t] = np.stack((signal, made), axis=1)
        taken[:, t] = np.stack((~acts, acts), axis=1) * decided[:, None]
        wanted[:, t] = np.stack((1.0 - pi, pi), axis=1) * decided[:, None]
        made += through
        ends = alive & (~through | (t == TURNS - 1))
        right = random.random(n) < np.clip(0.95 - 0.25 * signal + 0.2 * made, 0.05, 0.98)
        outcome[:, -1] += ends * right
        alive &= ~ends
    own = np.arange(n, dtype=np.int64)
    log = Log(ratios=ratios, tilted=tilted, presence=presence, clusters=own)
    return Simulated(
        log=log, calls=calls, outcome=outcome, states=states, taken=taken, target=wanted
    )


def truth(target: float, n: int = 2_000_000) -> tuple[float, float]:
    """Calls and outcome of the policy with threshold ``target``, run itself."""
    random = np.random.default_rng(77)
    ran = simulate(random, n, threshold=target, epsilon=0.0, target=target)
    return float(ran.calls.sum() / n), float(ran.outcome.sum() / n)

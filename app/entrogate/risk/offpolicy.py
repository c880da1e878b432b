"""What a policy would have earned, from trajectories that another policy decided.

A trajectory is a row of decisions. At each of them the logging policy took the stored action with a
stored probability, its propensity; the target policy would have taken it with another one. ρ_t is
the product of the ratios of the two up to decision t, ρ_0 = 1. What was earned after decision t and
before the next one is r_t, what was earned before the first one r_0.

Three estimators of E_target[Σ r_t]:

- per-decision importance sampling: the mean of Σ_t ρ_t r_t. Unbiased, with the widest spread.
- self-normalised: Σ_t (Σ_i ρ_it r_it / Σ_i ρ_it). The weights of each step add up to 1, so that
  a constant is estimated without error. Its bias is of order 1/n.
- doubly robust: the self-normalised one with Σ_t (V_t − Q_t) added, weighted so that its
  expectation is 0 whatever the model behind Q and V says. A good model narrows the spread.

A call that a gate masked may not have been sampled anyway. With probability ``presence`` it would
have been, and there was a decision; otherwise there was none. Its ratio is therefore
(1 − presence) + presence · π/b, which leaves all three estimators as they are: see decision 0025.

Errors are those of the linearised estimator, with trajectories of one cluster (runs of one task)
summed before they are squared.

Sources: Precup, Sutton, Singh 2000 (per-decision); Jiang, Li 2016 and Thomas, Brunskill 2016
(doubly robust, weighted); Kish 1965 (effective sample size); Franco et al. 2019 (Wilson's
interval with an effective n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_RIDGE = 1.0
_FOLDS = 5
_FEW = 0.05  # of the weight of a step; less than that may not be all that other trajectories have


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """n trajectories of up to T decisions; past its end a trajectory has ratios of 1.

    ``ratios`` (n, T) are target by logging probability of what was done. ``tilted`` (n, T) and
    ``presence`` (n, T) are the same ratio given that there was a decision, times the probability
    that there was one, and that probability: both 0 past the end, ratio and 1 where a call was
    sampled. ``clusters`` (n,) names the cluster of each trajectory.

    ValueError where shapes differ, or a number is negative, infinite or nan.
    """

    ratios: _Floats
    tilted: _Floats
    presence: _Floats
    clusters: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.ratios.shape
        if len(shape) != 2 or self.tilted.shape != shape or self.presence.shape != shape:
            raise ValueError("ratios, tilted and presence must have one shape (n, T)")
        if self.clusters.shape != shape[:1]:
            raise ValueError(f"{len(self.clusters)} clusters for {shape[0]} trajectories")
        for name, values in (("ratios", self.ratios), ("tilted", self.tilted)):
            if not (np.isfinite(values).all() and (values >= 0.0).all()):
                raise ValueError(f"{name} must be finite and not negative")
        if not ((self.presence >= 0.0) & (self.presence <= 1.0)).all():
            raise ValueError("presence is a probability")

    @property
    def cumulative(self) -> _Floats:
        """ρ, shape (n, T + 1): the weight of each trajectory after each decision."""
        n, steps = self.ratios.shape
        rho = np.ones((n, steps + 1))
        rho[:, 1:] = np.cumprod(self.ratios, axis=1)
        return rho

    @property
    def weights(self) -> _Floats:
        """ρ after the last decision, shape (n,)."""
        return self.cumulative[:, -1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its standard error and interval; ``effective`` is the effective sample size."""

    value: float
    error: float
    lower: float
    upper: float
    n: int
    effective: float


def effective_size(weights: _Floats) -> float:
    """Kish's effective sample size (Σw)² / Σw²; 0 where every weight is 0."""
    squares = float(np.square(weights).sum())
    return 0.0 if squares == 0.0 else float(weights.sum()) ** 2 / squares


def sampled(ratios: _Floats, clusters: NDArray[np.int64] | None = None) -> Log:
    """A log whose every column is a decision about a sampled call, in every trajectory."""
    own = np.arange(len(ratios), dtype=np.int64)
    return Log(
        ratios=ratios,
        tilted=ratios,
        presence=np.ones_like(ratios),
        clusters=own if clusters is None else clusters,
    )


def mean_estimate(
    values: _Floats,
    clusters: NDArray[np.int64],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> Estimate:
    """The plain mean of ``values`` (n,), one a trajectory, as an `Estimate`."""
    value = float(values.mean())
    effective = effective_size(np.bincount(_ranks(clusters)).astype(np.float64))
    return _estimate(
        value, values - value, clusters, effective=effective, bounds=bounds, confidence=confidence
    )


def per_decision(
    log: Log,
    rewards: _Floats,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> Estimate:
    """Per-decision importance sampling of ``rewards`` (n, T + 1)."""
    _check_rewards(log, rewards)
    values = (log.cumulative * rewards).sum(axis=1)
    value = float(values.mean())
    effective = effective_size(_by_cluster(log.weights, log.clusters))
    return _estimate(
        value,
        values - value,
        log.clusters,
        effective=effective,
        bounds=bounds,
        confidence=confidence,
    )


def self_normalised(
    log: Log,
    rewards: _Floats,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> Estimate:
    """Self-normalised per-decision importance sampling of ``rewards`` (n, T + 1).

    ValueError where every weight of a step is 0: the log has nothing of what the policy does there.
    """
    zeros = np.zeros_like(log.ratios)
    return doubly_robust(log, rewards, zeros, zeros, bounds=bounds, confidence=confidence)


def doubly_robust(
    log: Log,
    rewards: _Floats,
    q: _Floats,
    v: _Floats,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> Estimate:
    """Self-normalised and doubly robust, by a model of what is earned from each decision on.

    ``q`` (n, T) is what the model expects after the action that was taken, ``v`` (n, T) over the
    target's own actions. They must not have been fitted on the trajectory they speak of (`fit`).
    """
    _check_rewards(log, rewards)
    if q.shape != log.ratios.shape or v.shape != log.ratios.shape:
        raise ValueError("q and v must have the shape of the ratios")
    rho = log.cumulative
    means = rho.mean(axis=0)
    if (means == 0.0).any():
        raise ValueError("no trajectory of the log goes on as the policy would")
    before = rho[:, :-1]
    value, influence = _shares(rho * rewards, rho, means)
    less, of_less = _shares(before * log.tilted * q, rho[:, 1:], means[1:])
    more, of_more = _shares(before * log.presence * v, before, means[:-1])
    effective = effective_size(_by_cluster(log.weights, log.clusters))
    return _estimate(
        value - less + more,
        influence - of_less + of_more,
        log.clusters,
        effective=effective,
        bounds=bounds,
        confidence=confidence,
    )


def _shares(amounts: _Floats, weights: _Floats, means: _Floats) -> tuple[float, _Floats]:
    """Σ_t Σ_i amounts / Σ_i weights, and what each trajectory adds to its error.

    That is what leaving the trajectory out would change, as of a jackknife: with few large weights
    the plain linearisation finds too small an error.
    """
    shares = amounts.mean(axis=0) / means
    totals = weights.sum(axis=0)
    others = np.maximum(totals - weights, _FEW * totals) / totals
    return float(shares.sum()), ((amounts - shares * weights) / (means * others)).sum(axis=1)


def fit(
    log: Log, rewards: _Floats, states: _Floats, taken: _Floats, target: _Floats
) -> tuple[_Floats, _Floats]:
    """``q`` and ``v`` of `doubly_robust`: a ridge regression for each action, cross-fitted.

    ``states`` (n, T, D) is what was known at each decision, ``taken`` (n, T, A) the action as 0 and
    1, ``target`` (n, T, A) the target's probabilities. What is regressed is the importance-sampled
    return from the decision on, less what is usual at each step: so a trajectory that has ended and
    one that goes on differ only by what they earn. A trajectory's values come from a fit without
    its fold.
    """
    _check_rewards(log, rewards)
    decided = log.presence > 0.0
    rho = log.cumulative
    totals = rho.sum(axis=0)
    usual = (rho * rewards).sum(axis=0) / np.where(totals > 0.0, totals, 1.0)
    returns = _returns(log, rewards - usual)
    scaled = _standardised(states, decided)
    folds = _ranks(log.clusters) % _FOLDS
    q, v = np.zeros_like(log.ratios), np.zeros_like(log.ratios)
    for fold in range(_FOLDS):
        inside = decided & (folds == fold)[:, None]
        outside = decided & (folds != fold)[:, None]
        if not inside.any() or not outside.any():
            continue
        of_action = _ridge(scaled[outside], taken[outside], returns[outside])
        expected = scaled[inside] @ of_action.T  # (decisions, A)
        q[inside] = (expected * taken[inside]).sum(axis=1)
        v[inside] = (expected * target[inside]).sum(axis=1)
    return q, v


def _returns(log: Log, rewards: _Floats) -> _Floats:
    """The importance-sampled return from each decision on, its own ratio left out; (n, T)."""
    steps = log.ratios.shape[1]
    returns = np.zeros_like(log.ratios)
    later = np.zeros(len(returns))
    for t in reversed(range(steps)):
        returns[:, t] = rewards[:, t + 1] + later
        later = log.ratios[:, t] * returns[:, t]
    return returns


def _standardised(states: _Floats, decided: NDArray[np.bool_]) -> _Floats:
    """States with mean 0 and deviation 1 over the decisions, and a 1 in front."""
    known = states[decided]
    if not len(known):
        return np.concatenate((np.ones((*states.shape[:2], 1)), states), axis=2)
    deviation = known.std(axis=0)
    scaled = (states - known.mean(axis=0)) / np.where(deviation > 0.0, deviation, 1.0)
    return np.concatenate((np.ones((*states.shape[:2], 1)), scaled), axis=2)


def _ridge(states: _Floats, taken: _Floats, returns: _Floats) -> _Floats:
    """Coefficients (A, D) of a ridge regression for each action; those of no action are 0."""
    penalty = np.full(states.shape[1], _RIDGE)
    penalty[0] = 1e-9  # the constant is free
    found: list[_Floats] = []
    for action in range(taken.shape[1]):
        rows = taken[:, action] > 0.0
        x, y = states[rows], returns[rows]
        found.append(np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ y).astype(np.float64))
    return np.stack(found)


def _estimate(
    value: float,
    influence: _Floats,
    clusters: NDArray[np.int64],
    *,
    effective: float,
    bounds: tuple[float, float],
    confidence: float,
) -> Estimate:
    """An `Estimate` whose error is that of the mean of ``influence`` (n,), by clusters."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence of {confidence:g}: want one in (0, 1)")
    n = len(influence)
    sums = _by_cluster(influence, clusters)
    error = math.nan
    if len(sums) > 1:
        centred = sums - sums.mean()
        scale = len(sums) / (len(sums) - 1)
        error = math.sqrt(scale * float(np.square(centred).sum())) / n
    lower, upper = _interval(value, error, effective, bounds, confidence)
    shown = min(max(value, bounds[0]), bounds[1])  # a doubly robust value may lie outside
    return Estimate(value=shown, error=error, lower=lower, upper=upper, n=n, effective=effective)


def _interval(
    value: float, error: float, effective: float, bounds: tuple[float, float], confidence: float
) -> tuple[float, float]:
    """Wilson's interval between two finite bounds, otherwise Student's; on the log scale above one.

    Where nothing varies between finite bounds the error says nothing: then the end that is not
    known is that of ``effective`` equal outcomes in a row.
    """
    least, most = bounds
    if math.isnan(error):
        return least, most
    tail = (1.0 - confidence) / 2.0
    t = student_quantile(1.0 - tail, max(effective - 1.0, 2.0))
    if math.isfinite(least) and not math.isfinite(most) and value > least:
        factor = math.exp(min(t * error / (value - least), 700.0))
        return least + (value - least) / factor, least + (value - least) * factor
    if not math.isfinite(most - least):
        return max(least, value - t * error), min(most, value + t * error)
    width = most - least
    share, spread = (value - least) / width, error / width
    if not 0.0 < share < 1.0 or spread == 0.0:
        return _of_no_spread(value, error, t, bounds, tail ** (1.0 / max(effective, 1.0)))
    equal = share * (1.0 - share) / spread**2  # so many plain trials have this error
    middle = (share + t * t / (2.0 * equal)) / (1.0 + t * t / equal)
    reach = t * math.sqrt(share * (1.0 - share) / equal + t * t / (4.0 * equal**2))
    reach /= 1.0 + t * t / equal
    return least + width * max(0.0, middle - reach), least + width * min(1.0, middle + reach)


def _of_no_spread(
    value: float, error: float, t: float, bounds: tuple[float, float], run: float
) -> tuple[float, float]:
    """The interval at an end of the bounds; ``run`` is the share that a run of successes shows."""
    least, most = bounds
    lower, upper = max(least, value - t * error), min(most, value + t * error)
    if value >= most:
        return min(lower, least + (most - least) * run), most
    if value <= least:
        return least, max(upper, most - (most - least) * run)
    return lower, upper


def student_quantile(p: float, freedom: float) -> float:
    """Quantile of Student's t by the Cornish–Fisher expansion (Abramowitz, Stegun 26.7.5).

    Within 0.2 % of the exact one from 3 degrees of freedom on, for p up to 0.975.
    """
    z = NormalDist().inv_cdf(p)
    z3, z5, z7, z9 = z**3, z**5, z**7, z**9
    terms = (
        (z3 + z) / 4.0,
        (5.0 * z5 + 16.0 * z3 + 3.0 * z) / 96.0,
        (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / 384.0,
        (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * z) / 92160.0,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def _check_rewards(log: Log, rewards: _Floats) -> None:
    n, steps = log.ratios.shape
    if rewards.shape != (n, steps + 1):
        raise ValueError(f"rewards have shape {rewards.shape}; want {(n, steps + 1)}")
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite: leave out trajectories of which one is unknown")


def _ranks(clusters: NDArray[np.int64]) -> NDArray[np.intp]:
    """The clusters numbered from 0 on."""
    return np.unique(clusters, return_inverse=True)[1].reshape(-1)


def _by_cluster(values: _Floats, clusters: NDArray[np.int64]) -> _Floats:
    return np.bincount(_ranks(clusters), weights=values).astype(np.float64)

"""Trajectories of a made-up world: how certain the model is, and whether it is right alone."""

from __future__ import annotations

import math

import numpy as np

from entrogate.calibrate.paired import CallTurn, Sample, Shadow
from entrogate.gate.policy import parse_policy
from entrogate.gate.schema import Policy
from entrogate.types import Estimator, Features, Interval, SegmentStats

POLICY = """
schema_version: 1
name: mine
mode: observe
signal: {statistic: entropy_max}
defaults: {threshold: 1.5, on_repeat: replay}
tools: {search: , read: }
"""


def policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "mine.yaml")


def segment(value: float, noise: float = 0.0, n_tokens: int = 10) -> SegmentStats:
    """Its mean is ``value``, its largest entropy ``value`` with noise, its margins say nothing."""
    mean, top = (Interval(lower=each, upper=each) for each in (value, max(0.0, value + noise)))
    return SegmentStats(
        start=0,
        stop=n_tokens,
        n_tokens=n_tokens,
        estimator=Estimator.EXACT,
        mean=mean,
        max=top,
        tail_mean=top,
        last_window=mean,
        margin_mean=abs(noise),
        margin_min=math.nan,
        p_tool_call=0.9,
        sum=Interval(lower=value * n_tokens, upper=value * n_tokens),
        logprob_sum=-value * n_tokens,
    )


def features(tool: str = "search", *, before: int = 0, **values: object) -> Features:
    known: dict[str, object] = {
        "segment": segment(0.5),
        "capture_complete": True,
        "tool_choice": "auto",
        "repeats": 0,
        "replayable": False,
        "calls_before": before,
        "tool_calls_before": before,
        "parallel_calls": 1,
        "replays_in_turn": 0,
        "draw": 0.5,
    }
    return Features(tool=tool, **(known | values))  # pyright: ignore[reportArgumentType]


def samples(
    n: int, seed: int, *, slope: float = 3.0, tools: tuple[str, ...] = ("search",)
) -> list[Sample]:
    """``n`` trajectories of one to three turns.

    Each turn has an entropy u from 0 to 2 nats; the answer without its call is right with
    probability sigmoid(slope · (1 − u)): with a slope of 0 certainty says nothing.
    """
    random = np.random.default_rng(seed)
    made: list[Sample] = []
    for number in range(n):
        turns: list[CallTurn] = []
        for before in range(random.integers(1, 4)):
            u = random.uniform(0.0, 2.0)
            right = random.random() < 1.0 / (1.0 + math.exp(-slope * (1.0 - u)))
            seen = features(
                tools[random.integers(len(tools))],
                before=before,
                segment=segment(u, random.normal(0.0, 1.0)),
                draft=segment(u, random.normal(0.0, 0.3), 8),
            )
            turns.append(CallTurn(features=(seen,), shadow=Shadow(score=float(right))))
        outcome = float(random.random() < 0.9)
        made.append(Sample(trajectory_id=f"t{number}", outcome=outcome, turns=tuple(turns)))
    return made

"""Logs that the gate itself decided, in a world whose truth can be simulated.

A trajectory is a question that the model may call tools for, up to `TURNS` times. A call is certain
or not by its entropy; a repeat brings nothing new; what the engine masks is masked whether a call
would have been sampled or not, as in `turn.judge`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from entrogate.gate.decide import decide_turn
from entrogate.gate.schema import Policy
from entrogate.gate.unseen import settled
from entrogate.store.read.decisions import DecidedCall
from entrogate.store.read.logged import LoggedShadow, LoggedTrajectory, LoggedTurn
from entrogate.turn.judge import UNSAMPLED
from entrogate.types import Action, Decision, Features, Mode
from tests.unit.gate.factory import features, policy, segment

TURNS = 4
SECONDS, TOKENS = 0.5, 20


def threshold(value: float, on_repeat: str = "allow", **more: str) -> Policy:
    """A policy of the world: below this entropy a call is suppressed."""
    return policy(str(value), on_repeat=on_repeat, **more)


def call(seen: Features, decision: Decision, name: str = "lookup") -> DecidedCall:
    return DecidedCall(call_id="call", name=name, features=seen, decision=decision)


def turn(
    *calls: DecidedCall,
    request_id: str = "r",
    shadow: LoggedShadow | None = None,
    **changed: Any,
) -> LoggedTurn:
    values: dict[str, Any] = {
        "request_id": request_id,
        "model": "m",
        "weight_version": "base",
        "created_at": 0.0,
        "duration_seconds": SECONDS,
        "n_tokens": TOKENS,
        "masked": False,
    }
    return LoggedTurn(calls=calls, shadow=shadow, **(values | changed))


def logged(
    *turns: LoggedTurn, name: str = "t", score: float | None = None, **changed: Any
) -> LoggedTrajectory:
    values: dict[str, Any] = {
        "trajectory_id": name,
        "task_id": None,
        "created_at": 0.0,
        "incomplete_reason": None,
        "scores": () if score is None else (score,),
    }
    return LoggedTrajectory(turns=turns, **(values | changed))


def run(
    random: np.random.Generator,
    by: Policy,
    mode: Mode,
    name: str,
    *,
    shadows: bool = False,
    engine: bool = True,
) -> LoggedTrajectory:
    """One trajectory under a policy; with ``shadows`` each call has both outcomes.

    Without the ``engine``'s gate every call is sampled before it is decided upon.
    """
    turns: list[LoggedTurn] = []
    results, replays, skill = 0, 0, float(random.uniform(0.0, 1.0))
    for number in range(TURNS):
        entropy = float(random.uniform(0.0, 2.0) + 2.0 * (1.0 - skill))
        p = float(np.clip(0.3 + 0.3 * entropy, 0.0, 0.95))
        samples, repeats = random.random() < p, results > 0 and random.random() < 0.3
        before = features(
            segment=segment(entropy, width=0.0),
            draw=float(random.random()),
            calls_before=results,
            tool_calls_before=results,
            replays_in_turn=replays,
        )
        alone = bool(random.random() < right(entropy, results))
        shadow = LoggedShadow(
            called=False,
            score=float(alone),
            n_kept=TOKENS // 2,
            n_tokens=TOKENS // 4,
            duration_seconds=SECONDS / 4,
            ended=True,
            capture=None,
        )
        if engine and settled(by, mode, before) is Action.SUPPRESS:
            seen = replace(before, p_sampled=p)
            record = call(seen, decide_turn(by, mode, [seen])[0], UNSAMPLED)
            turns.append(turn(record, request_id=f"{number}"))
            return logged(*turns, name=name, score=float(alone))
        if not samples:
            return logged(*turns, turn(request_id=f"{number}"), name=name, score=float(alone))
        seen = replace(before, repeats=int(repeats), near_repeats=int(repeats), replayable=repeats)
        decision = decide_turn(by, mode, [seen])[0]
        turns.append(
            turn(call(seen, decision), request_id=f"{number}", shadow=shadow if shadows else None)
        )
        if decision.applied is Action.SUPPRESS:
            return logged(*turns, name=name, score=float(alone))
        replays = replays + 1 if decision.applied is Action.REPLAY else 0
        results += not repeats
    ends = bool(random.random() < right(1.0, results))
    return logged(*turns, turn(request_id="last"), name=name, score=float(ends))


def right(entropy: float, results: int) -> float:
    """Probability of a right answer: certain models know, and results help."""
    return float(np.clip(0.95 - 0.25 * entropy + 0.25 * results, 0.05, 0.95))


def log(seed: int, n: int, by: Policy, mode: Mode, **how: bool) -> list[LoggedTrajectory]:
    """``n`` trajectories of one policy (`run`)."""
    random = np.random.default_rng(seed)
    return [run(random, by, mode, f"t{number}", **how) for number in range(n)]


def means(trajectories: list[LoggedTrajectory]) -> dict[str, float]:
    """What trajectories had per one, counted plainly."""
    n = len(trajectories)
    turns = [turn for each in trajectories for turn in each.turns]
    return {
        "calls": sum(c.decision.applied is Action.ALLOW for t in turns for c in t.calls) / n,
        "tokens": sum(turn.n_tokens for turn in turns) / n,
        "seconds": sum(turn.duration_seconds for turn in turns) / n,
        "outcome": sum(each.scores[0] for each in trajectories) / n,
    }

"""What the tests of `entrogate policy evaluate` share."""

from __future__ import annotations

from typing import Any

from entrogate.calibrate.by_shadows import Pair, Pairs
from entrogate.calibrate.evaluate import evaluate
from entrogate.calibrate.evaluated import Options, Report
from entrogate.gate.decide import decide_turn
from entrogate.gate.schema import Policy
from entrogate.store.read.logged import LoggedShadow, LoggedTrajectory
from entrogate.types import Mode
from tests.unit.calibrate.logs import call, logged, threshold, turn
from tests.unit.gate.factory import features, segment

EXPLORING = threshold(1.5, explore="{epsilon: 0.3}")
REPLAYING = threshold(1.5, on_repeat="replay", explore="{epsilon: 0.3}")


def pair(trajectory: LoggedTrajectory, policy: Policy, mode: Mode) -> Pair | None:
    found = Pairs(policy, mode).pair(trajectory)
    return found if isinstance(found, Pair) else None


def report(
    trajectories: list[LoggedTrajectory], policy: Policy, logging: Policy | None = EXPLORING, **more
) -> Report:
    return evaluate(trajectories, policy, Options(**more), lambda _: logging)


def explored_of(found: Report):
    (model,) = found.models
    assert model.explored is not None
    return model.explored


def called(trajectory: LoggedTrajectory) -> bool:
    return any(turn.calls for turn in trajectory.turns)


def shadow(**changed: Any) -> LoggedShadow:
    values: dict[str, Any] = {
        "called": False,
        "score": 1.0,
        "n_kept": 10,
        "n_tokens": 5,
        "duration_seconds": 0.1,
        "ended": True,
        "capture": None,
    }
    return LoggedShadow(**(values | changed))


SHADOW = shadow()


def observed(
    *entropies: float, score: float = 0.0, shadow_: LoggedShadow | None = SHADOW
) -> LoggedTrajectory:
    """Calls of these entropies, each with a shadow, and an answer."""
    turns = []
    for number, entropy in enumerate(entropies):
        seen = features(segment=segment(entropy, width=0.0), calls_before=number)
        decision = decide_turn(EXPLORING, Mode.OBSERVE, [seen])[0]
        turns.append(turn(call(seen, decision), request_id=f"{number}", shadow=shadow_))
    return logged(*turns, turn(request_id="last"), score=score)

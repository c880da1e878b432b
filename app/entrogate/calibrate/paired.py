"""Observed trajectories paired with their outcomes without the calls.

The unit of every promise is one trajectory. Its turns with calls come in order; under a policy the
first of them that is suppressed ends it with the answer of its shadow. It is a *loss* where the
trajectory was right as observed and that answer is wrong, a *gain* the other way round.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entrogate.gate.decide import decide_turn
from entrogate.gate.schema import Policy
from entrogate.label.shadows import RIGHT
from entrogate.types import Action, Features, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """The judged answer without the calls of a turn. One that calls again counts as wrong."""

    score: float  # in [0, 1]
    called: bool = False
    judged_by: str = "gold"

    def __post_init__(self) -> None:
        if not 0.0 <= self.score <= 1.0:  # also for nan
            raise ValueError(f"a shadow's score is {self.score}; want 0 … 1")

    @property
    def is_right(self) -> bool:
        """Whether the trajectory would have ended well here."""
        return self.score >= RIGHT and not self.called


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTurn:
    """A turn with calls: what the gate saw of each, and the shadow.

    ``shadow`` is None only for a turn that no policy at hand may suppress.
    """

    features: tuple[Features, ...]
    shadow: Shadow | None

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("a turn with calls has the features of at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One trajectory that was observed with all its calls made, and has an outcome."""

    trajectory_id: str
    outcome: float  # in [0, 1]
    turns: tuple[CallTurn, ...]
    task_id: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.outcome <= 1.0:
            raise ValueError(f"the outcome of {self.trajectory_id} is {self.outcome}; want 0 … 1")
        if not self.turns:
            raise ValueError(f"{self.trajectory_id} has no turn with calls")

    @property
    def is_right(self) -> bool:
        """Whether it ended well as observed."""
        return self.outcome >= RIGHT

    @property
    def n_calls(self) -> int:
        """Calls that were made."""
        return sum(len(turn.features) for turn in self.turns)

    def calls_from(self, index: int) -> int:
        """Calls that were made from the turn ``index`` on: saved if that one is suppressed."""
        return sum(len(turn.features) for turn in self.turns[index:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The result of one sample under a policy."""

    loss: bool = False
    gain: bool = False
    called_again: bool = False
    saved: int = 0  # calls
    right: bool = False


def under(policy: Policy, sample: Sample) -> Ended:
    """What would have become of ``sample`` if ``policy`` had been enforced, without an audit.

    Raises ValueError where the policy suppresses a turn that has no shadow.
    """
    for index, turn in enumerate(sample.turns):
        # An audited call was let through, but its action is still to suppress.
        if decide_turn(policy, Mode.ENFORCE, turn.features)[0].action is Action.SUPPRESS:
            if turn.shadow is None:
                raise ValueError(f"turn {index} of {sample.trajectory_id} has no shadow")
            right = turn.shadow.is_right
            return Ended(
                loss=sample.is_right and not right,
                gain=right and not sample.is_right,
                called_again=turn.shadow.called,
                saved=sample.calls_from(index),
                right=right,
            )
    return Ended(right=sample.is_right)


def unit_of(trajectory_id: str, task_id: str | None) -> str:
    """What a trajectory is independent of others in: its task, or itself where it has none."""
    return f"id {trajectory_id}" if task_id is None else f"task {task_id}"


def one_per_task(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """One sample of each task, drawn at random; those without a task all stay.

    Trajectories of one task share its question: they are not independent samples.
    """
    groups: dict[str, list[Sample]] = {}
    kept: list[Sample] = []
    for sample in samples:
        if sample.task_id is None:
            kept.append(sample)
        else:
            groups.setdefault(sample.task_id, []).append(sample)
    draw = random.Random(seed)
    return kept + [draw.choice(groups[task]) for task in sorted(groups)]


def split(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of two parts without a trajectory or a task in common; the first has about
    ``share`` of them.

    Raises ValueError for a share outside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"the share of a split is {share}; want a number between 0 and 1")
    groups: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        own = unit_of(sample.trajectory_id, sample.task_id)
        groups.setdefault(own, []).append(number)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    first: list[int] = []
    wanted = round(share * len(samples))
    taken = 0
    while taken < len(names) and len(first) < wanted:
        first += groups[names[taken]]
        taken += 1
    return first, [number for name in names[taken:] for number in groups[name]]

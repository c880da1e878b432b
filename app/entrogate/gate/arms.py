"""Which policy decides on a trajectory: the main one, or one on trial for a share. Pure.

What the settings give stands until an admin orders something else, and an order stands until the
settings give something else: what was said last counts (`arms_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from entrogate.gate.draws import unit_draw
from entrogate.gate.schema import Policy


class Arm(StrEnum):
    """The two places that a policy can be in force in."""

    MAIN = "main"
    TRIAL = "trial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """The policies in force at one moment; a change makes another value.

    ``share``: of the trajectories that begin, how many the trial gets. Raises ValueError for a
    share outside of [0, 1], one without a trial, and two arms with the same policy.
    """

    main: Policy
    trial: Policy | None = None
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"the share of the trial is {self.share}; want 0 to 1")
        if self.trial is None and self.share:
            raise ValueError(f"a share of {self.share} without a policy on trial: name the policy")
        if self.trial is not None and self.trial.version == self.main.version:
            raise ValueError(
                f"the policy on trial, {self.trial.name} {self.trial.version}, is the main one: a"
                " trial needs another policy (another name or mode makes it one)"
            )

    @property
    def in_force(self) -> tuple[Policy, ...]:
        """The main policy, then the one on trial if there is one."""
        return (self.main,) if self.trial is None else (self.main, self.trial)

    def policy_for(self, trajectory_id: str, began_on: str = "") -> Policy:
        """What decides on a turn of this trajectory; ``began_on``: the version of its parent turn.

        A trajectory stays on its policy while that is in force. The draw for others is a hash, so
        it needs no memory, is the same in every replica, and a share that grows takes trajectories
        in and gives none away.
        """
        for policy in self.in_force:
            if policy.version == began_on:
                return policy
        if self.trial is None or _drawn(self.trial.version, trajectory_id) >= self.share:
            return self.main
        return self.trial

    def share_of(self, arm: Arm) -> float:
        """What an arm gets of the trajectories that begin."""
        return self.share if arm is Arm.TRIAL else 1.0 - self.share

    def items(self) -> tuple[tuple[Arm, Policy], ...]:
        """The arms with their policies, the main one first."""
        return tuple(zip(Arm, self.in_force, strict=False))


def _drawn(version: str, trajectory_id: str) -> float:
    """A number in [0, 1) that belongs to the trajectory; every trial draws anew."""
    return unit_draw(f"policy {version} {trajectory_id}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the settings give: the policies that they name, and the share of the trial."""

    main: Policy
    trial: Policy | None = None
    share: float = 0.0

    def mark(self, arm: Arm) -> str:
        """Identifies what is given for an arm, to notice that it has changed."""
        if arm is Arm.MAIN:
            return self.main.version
        return "" if self.trial is None else f"{self.trial.version} {self.share:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an admin ordered for one arm, over what the settings give."""

    arm: Arm
    version: str  # "": no policy, which only a trial can have
    share: float  # of a trial; 0 for the main policy
    instead_of: str  # `Given.mark` when it was ordered
    ordered_at: float  # seconds since the epoch

    def holds(self, given: Given) -> bool:
        """Whether the settings still give what was ordered over."""
        return self.instead_of == given.mark(self.arm)


def arms_of(given: Given, orders: Mapping[Arm, Order], known: Mapping[str, Policy]) -> Arms:
    """What is in force; ``known`` has the policies that the orders name, by version.

    A trial is over when the main policy becomes the same.
    """
    main, trial, share = given.main, given.trial, given.share
    held = {arm: order for arm, order in orders.items() if order.holds(given)}
    if Arm.MAIN in held:
        main = known[held[Arm.MAIN].version]
    if Arm.TRIAL in held:
        version, share = held[Arm.TRIAL].version, held[Arm.TRIAL].share
        trial = known[version] if version else None
    if trial is None or trial.version == main.version:
        return Arms(main=main)
    return Arms(main=main, trial=trial, share=share)

"""A clock that never makes anything look younger than it is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from entrogate.turn.clock import Clock


@dataclass
class Machine:
    """A machine whose wall clock may be set, and that may sleep."""

    wall: float = 1000.0
    running: float = 5.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.running)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.running += seconds


def test_it_shows_the_time_of_day() -> None:
    assert abs(Clock().now() - time.time()) < 60


def test_it_does_not_go_back_with_the_wall_clock() -> None:
    machine = Machine()
    clock = machine.clock()
    asked = clock.now()
    machine.wait(100)
    machine.wall -= 90
    assert clock.now() - asked == 100
    machine.wait(100)
    assert clock.now() - asked == 200


def test_it_stays_ahead_after_a_jump_forward_and_back() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 3600
    asked = clock.now()
    machine.wall -= 3600
    machine.wait(10)
    assert clock.now() - asked == 10


def test_a_sleep_that_only_the_wall_clock_saw_counts() -> None:
    machine = Machine()
    clock = machine.clock()
    asked = clock.now()
    machine.wall += 500
    assert clock.now() - asked == 500


_SECONDS = st.floats(0, 1e4)
_STEPS = st.lists(st.tuples(_SECONDS, st.floats(-1e4, 1e4)), min_size=1, max_size=30)


@given(_STEPS)
def test_ages_are_never_too_small(steps: list[tuple[float, float]]) -> None:
    """Whatever the wall clock does, what was measured ``d`` seconds ago is at least that old."""
    machine = Machine()
    clock = machine.clock()
    past: list[tuple[float, float]] = []
    for waited, jump in steps:
        past.append((clock.now(), machine.running))
        machine.wait(waited)
        machine.wall += jump
        now = clock.now()
        for shown, running in past:
            assert now - shown >= machine.running - running - 1e-6

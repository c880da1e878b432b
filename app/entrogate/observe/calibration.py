"""Metrics of what the promises of policies are worth (`serve.calibration`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFigures:
    """What the promise of one policy in force is worth; ``state`` as `gate.calibrated` names it."""

    policy: str
    version: str
    state: str


class CalibrationMetrics:
    """``gauge`` and ``counter`` make metrics of the gateway's registry."""

    def __init__(self, gauge: Callable[..., Gauge], counter: Callable[..., Counter]) -> None:
        self._state = gauge(
            "policy_calibration",
            "Always 1: state of the calibration of a policy in force, for the stable weights.",
            "policy",
            "version",
            "state",
        )
        self._turns = counter(
            "uncalibrated_turns",
            "Turns in mode enforce or explore without a valid calibration, by what was done.",
            "state",
            "applied",
        )

    def set(self, figures: Sequence[CalibrationFigures]) -> None:
        """Show these policies and no others."""
        self._state.clear()
        for each in figures:
            self._state.labels(each.policy, each.version, each.state).set(1)

    def record_turn(self, state: str, *, observed: bool) -> None:
        """Count a turn whose policy is not calibrated for what answers it."""
        self._turns.labels(state, "observe" if observed else "as_set").inc()

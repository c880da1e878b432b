"""Whether the promise of a policy holds for what answers: warnings, a metric, and the refusal.

With `gate.require_calibration`, a turn whose policy is not calibrated for the model, weights,
tokenizer and estimator that answer it is only observed. It is answered all the same: what cannot
be trusted is the gate, so it fails open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from entrogate.gate.calibrated import CalibrationState, calibration_state
from entrogate.gate.schema import Policy
from entrogate.observe.calibration import CalibrationFigures, CalibrationMetrics
from entrogate.types import Estimator, Mode

_log = logging.getLogger("entrogate.serve")


class Calibrations:
    """Compares the policies in force with what answers. Belongs to the event loop's thread.

    ``policies`` says which are in force, ``mode_of`` what each may do, ``stable_weights`` the
    version of the weights that answer where no canary does.
    """

    def __init__(
        self,
        *,
        required: bool,
        policies: Callable[[], Sequence[Policy]],
        mode_of: Callable[[Policy], Mode],
        stable_weights: Callable[[], str],
        metrics: CalibrationMetrics,
    ) -> None:
        self.required = required
        self._policies = policies
        self._mode_of = mode_of
        self._stable_weights = stable_weights
        self._metrics = metrics
        self._models: frozenset[str] = frozenset()  # empty: not known yet
        self._tokenizer = ""
        self._estimator: Estimator | None = None
        self._told: dict[str, CalibrationState] = {}
        self._seen: tuple[str, ...] = ()

    def found(
        self, models: Collection[str], tokenizer: str, estimator: Estimator | None = None
    ) -> None:
        """These are the names of the model behind the gateway, and the hash of its tokenizer.

        ``estimator``: how its entropies are measured; None where they are not.
        """
        self._models, self._tokenizer = frozenset(models), tokenizer
        self._estimator, self._seen = estimator, ()
        self.look()

    def look(self) -> None:
        """Compare anew where the policies or the weights have changed."""
        weights = self._stable_weights()
        seen = (weights, self._tokenizer, *(policy.version for policy in self._policies()))
        if not self._models or seen == self._seen:
            return
        self._seen = seen
        states = [(policy, self.state(policy, weights)) for policy in self._policies()]
        self._metrics.set(
            [
                CalibrationFigures(policy=policy.name, version=policy.version, state=state.value)
                for policy, state in states
            ]
        )
        for policy, state in states:
            if self._told.get(policy.version) is not state:
                self._tell(policy, state)
        self._told = {policy.version: state for policy, state in states}

    def states(self) -> dict[str, str]:
        """For `/ready`: what the promise of each policy in force is worth, by its version."""
        self.look()
        return {version: state.value for version, state in self._told.items()}

    def state(self, policy: Policy, weights: str, model: str = "") -> CalibrationState:
        """What the promise of ``policy`` is worth for these weights; ``model``: their own name."""
        return calibration_state(
            policy,
            models=self._models | {model},
            weights=weights,
            tokenizer=self._tokenizer,
            estimator=self._estimator,
        )

    def mode(
        self, policy: Policy, mode: Mode, *, weights: str, model: str, counts: bool = True
    ) -> Mode:
        """The mode of a turn that is answered by these weights; ``counts``: for the first time."""
        self.look()
        if mode is Mode.OBSERVE:
            return mode
        state = self.state(policy, weights, model)
        if state is CalibrationState.VALID:
            return mode
        if counts:
            self._metrics.record_turn(state.value, observed=self.required)
        return Mode.OBSERVE if self.required else mode

    def _tell(self, policy: Policy, state: CalibrationState) -> None:
        mode = self._mode_of(policy)
        if state is CalibrationState.VALID:
            _log.info("policy.calibrated policy=%s version=%s", policy.name, policy.version)
        elif policy.calibration is not None or mode is not Mode.OBSERVE:
            _log.warning(
                "policy.uncalibrated policy=%s version=%s state=%s %s%s",
                policy.name,
                policy.version,
                state.value,
                state.told,
                "; its turns are only observed (gate.require_calibration)"
                if self.required and mode is not Mode.OBSERVE
                else "",
            )

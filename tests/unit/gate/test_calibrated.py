"""What the calibration block of a policy is worth, by what answers and how it is measured."""

from __future__ import annotations

from typing import Any

import pytest

from entrogate.gate.calibrated import CalibrationState, calibration_hash, calibration_state
from entrogate.gate.schema import Calibration, Policy
from entrogate.types import Estimator

EXACT, TOPK = Estimator.EXACT, Estimator.TOPK


def calibrated(**block: Any) -> Policy:
    rules = Policy.model_validate({"schema_version": 1, "name": "mine", "tools": {"lookup": None}})
    made = Calibration.model_validate(
        {
            "model": "m",
            "weights": "base",
            "n": 60,
            "max_loss": 0.05,
            "delta": 0.1,
            "date": "2026-01-01",
            "data": "00",
            "hash": "",
        }
        | block
    )
    signed = made.model_copy(update={"hash": calibration_hash(rules, made)})
    return rules.model_copy(update={"calibration": signed})


@pytest.mark.parametrize(
    ("was", "found", "state"),
    [
        (EXACT, EXACT, CalibrationState.VALID),
        (TOPK, TOPK, CalibrationState.VALID),
        (TOPK, EXACT, CalibrationState.OTHER_ESTIMATOR),
        (EXACT, TOPK, CalibrationState.OTHER_ESTIMATOR),
        (EXACT, None, CalibrationState.VALID),  # nothing is measured: the gate lets all through
        (None, EXACT, CalibrationState.VALID),  # a block from before it was recorded
    ],
)
def test_estimators_are_compared_where_both_are_known(
    was: Estimator | None, found: Estimator | None, state: CalibrationState
) -> None:
    policy = calibrated(estimator=was)
    assert calibration_state(policy, models=["m"], weights="base", estimator=found) is state


def test_the_estimator_is_part_of_the_hash_and_an_older_block_keeps_its_own() -> None:
    old, new = calibrated(), calibrated(estimator="exact")
    assert old.calibration is not None
    assert new.calibration is not None
    assert "estimator" not in old.calibration.model_dump()
    assert old.calibration.hash != new.calibration.hash
    edited = new.calibration.model_copy(update={"estimator": TOPK})
    policy = new.model_copy(update={"calibration": edited})
    assert calibration_state(policy, models=["m"], weights="base") is CalibrationState.EDITED

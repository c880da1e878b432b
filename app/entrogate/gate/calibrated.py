"""Whether a policy's promise holds: its `calibration` block against its rules and the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from enum import StrEnum

from entrogate.gate.schema import Calibration, Policy
from entrogate.types import Estimator

_FREE = {"name", "mode", "explore", "audit", "calibration"}
"""What may be changed after calibration: none of it decides what is suppressed."""


class CalibrationState(StrEnum):
    """Whether the promise of a `calibration` block holds for the model that answers."""

    VALID = "valid"
    NONE = "none"  # no block: nothing is promised
    EDITED = "edited"  # the rules or the block are not what was certified
    OTHER_MODEL = "other_model"
    OTHER_WEIGHTS = "other_weights"
    OTHER_TOKENIZER = "other_tokenizer"
    OTHER_ESTIMATOR = "other_estimator"

    @property
    def told(self) -> str:
        """What is wrong, for a log line."""
        return _TOLD[self]


_TOLD = {
    CalibrationState.VALID: "the policy is calibrated for this model",
    CalibrationState.NONE: "the policy has no calibration: nothing is promised for its thresholds",
    CalibrationState.EDITED: "the policy was changed after calibration: its promise is void",
    CalibrationState.OTHER_MODEL: "the policy was calibrated for another model",
    CalibrationState.OTHER_WEIGHTS: "the policy was calibrated for other weights",
    CalibrationState.OTHER_TOKENIZER: "the policy was calibrated for another tokenizer",
    CalibrationState.OTHER_ESTIMATOR: (
        "the policy was calibrated on entropies that were measured in another way (with or without"
        " the plugin in vLLM)"
    ),
}


def calibration_hash(policy: Policy, calibration: Calibration | None = None) -> str:
    """Hash over the rules of ``policy`` and its block (or ``calibration``), without the hash in it.

    Name, mode, exploration and audit are left out: they may change and the promise stays.
    """
    block = policy.calibration if calibration is None else calibration
    content = {
        "rules": {k: v for k, v in policy.hashed_content().items() if k not in _FREE},
        "calibration": None if block is None else block.model_dump(mode="json", exclude={"hash"}),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def calibration_state(
    policy: Policy,
    *,
    models: Collection[str],
    weights: str,
    tokenizer: str = "",
    estimator: Estimator | None = None,
) -> CalibrationState:
    """Whether the promise of ``policy`` holds for the model that answers.

    ``models`` are its names, ``weights`` their version, ``tokenizer`` the hash of its tokenizer,
    ``estimator`` how its entropies are measured. An unknown hash ("" here, None in the block) is
    not compared, nor are two that were found in different ways (of a file, or by asking a server),
    nor an unknown estimator (None).
    """
    block = policy.calibration
    if block is None:
        return CalibrationState.NONE
    if block.hash != calibration_hash(policy):
        return CalibrationState.EDITED
    if block.model not in models:
        return CalibrationState.OTHER_MODEL
    if block.weights != weights:
        return CalibrationState.OTHER_WEIGHTS
    if _differ(block.tokenizer or "", tokenizer):
        return CalibrationState.OTHER_TOKENIZER
    if None not in (block.estimator, estimator) and block.estimator is not estimator:
        return CalibrationState.OTHER_ESTIMATOR
    return CalibrationState.VALID


def _differ(one: str, other: str) -> bool:
    comparable = one.startswith("probe-") is other.startswith("probe-")
    return bool(one and other) and comparable and one != other

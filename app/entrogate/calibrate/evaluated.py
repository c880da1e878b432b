"""Options and results of `entrogate policy evaluate`, and their JSON."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from entrogate.calibrate.by_shadows import Compared
from entrogate.calibrate.by_weights import Estimates, Support
from entrogate.calibrate.left_out import LeftOut
from entrogate.risk.offpolicy import Estimate
from entrogate.types import Mode

SCHEMA_VERSION = 1
LEAST_EFFECTIVE = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The mode to evaluate, the confidence of intervals, and which trajectories to use."""

    mode: Mode = Mode.ENFORCE
    confidence: float = 0.95
    least_effective: float = LEAST_EFFECTIVE
    model: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """Estimates from an explored log; ``refused`` says why there are none, and what is missing.

    ``mean_weight`` is far below 1 where the log lacks what the policy would do.
    """

    n: int
    n_outcomes: int
    effective: float
    mean_weight: Estimate
    support: Support
    estimates: dict[str, Estimates]
    refused: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Estimates from observed trajectories with shadows; ``refused`` says why there are none."""

    n: int
    n_outcomes: int
    compared: dict[str, Compared]
    shares: dict[str, Estimate]
    refused: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfModel:
    """The logs of one model under one version of its weights; None: there is no such log."""

    model: str
    weights: str
    explored: Explored | None
    observed: Observed | None


@dataclass(slots=True, kw_only=True)
class Report:
    """What `evaluate` found, by model."""

    policy: str
    version: str
    mode: Mode
    confidence: float
    models: list[OfModel] = field(default_factory=list[OfModel])
    left_out: Counter[LeftOut] = field(default_factory=Counter[LeftOut])

    @property
    def answered(self) -> bool:
        """Does any log give an estimate?"""
        return any(
            log is not None and log.refused is None
            for each in self.models
            for log in (each.explored, each.observed)
        )

    def as_json(self) -> dict[str, Any]:
        """For other programs; a number that is not known is null."""
        return _plain(
            {
                "schema_version": SCHEMA_VERSION,
                "policy": self.policy,
                "policy_version": self.version,
                "mode": self.mode.value,
                "confidence": self.confidence,
                "models": [asdict(each) for each in self.models],
                "left_out": {reason.value: count for reason, count in self.left_out.items()},
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {name: _plain(each) for name, each in named.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value

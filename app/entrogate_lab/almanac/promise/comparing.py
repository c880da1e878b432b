"""What shadows predict for a policy, compared with a run that enforced it on the same tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrogate.calibrate.paired import Sample, under
from entrogate.gate.schema import Policy
from entrogate_lab.almanac.intervals import mean, mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One task under a policy that did not run: whether it would end well, calls it would make."""

    right: bool
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The mean of paired differences, with its interval at 95 %."""

    n: int
    mean: float
    lower: float
    upper: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains 0."""
        return self.lower <= 0.0 <= self.upper

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        return {"n": self.n, "mean": self.mean, "ci": [self.lower, self.upper]}


def difference(pairs: Sequence[tuple[float, float]]) -> Difference:
    """Of the second numbers from the first ones."""
    each = [second - first for first, second in pairs]
    lower, upper = mean_interval(each)
    return Difference(n=len(each), mean=mean(each), lower=lower, upper=upper)


def predict(
    policy: Policy, samples: Sequence[Sample], records: Sequence[Mapping[str, Any]]
) -> dict[str, Predicted]:
    """By task: what ``policy`` would have made of the observed ``records``.

    A trajectory without a call is unchanged. Tasks without a sample (no shadow, no outcome) are
    left out.
    """
    by_id = {sample.trajectory_id: sample for sample in samples}
    predicted: dict[str, Predicted] = {}
    for record in records:
        sample = by_id.get(str(record["trajectory_id"]))
        if sample is not None:
            ended = under(policy, sample)
            predicted[str(record["task_id"])] = Predicted(
                right=ended.right, calls=sample.n_calls - ended.saved
            )
        elif not record["calls"] and record["turns"] == 1:
            predicted[str(record["task_id"])] = Predicted(right=bool(record["correct"]), calls=0)
    return predicted


def compare(
    policy: Policy,
    samples: Sequence[Sample],
    observed: Sequence[Mapping[str, Any]],
    enforced: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Accuracy and calls of an enforced run, against what was observed and what was predicted.

    Differences are enforced minus the other, paired by task.
    """
    before = {str(record["task_id"]): record for record in observed}
    after = {str(record["task_id"]): record for record in enforced}
    predicted = predict(policy, samples, observed)
    tasks = [task for task in after if task in before]
    known = [task for task in tasks if task in predicted]
    calls_before = sum(len(before[task]["calls"]) for task in tasks)
    calls_after = sum(len(after[task]["calls"]) for task in tasks)
    return {
        "tasks": len(tasks),
        "with_shadow": len(known),
        "accuracy": {
            "observed": mean([float(before[task]["correct"]) for task in tasks]),
            "predicted": mean([float(predicted[task].right) for task in known]),
            "enforced": mean([float(after[task]["correct"]) for task in tasks]),
        },
        "calls": {
            "observed": calls_before / max(1, len(tasks)),
            "enforced": calls_after / max(1, len(tasks)),
            "saved": 1.0 - calls_after / max(1, calls_before),
        },
        "lost": mean(
            [float(before[task]["correct"] and not after[task]["correct"]) for task in tasks]
        ),
        "gained": mean(
            [float(after[task]["correct"] and not before[task]["correct"]) for task in tasks]
        ),
        "accuracy_against_observed": difference(
            [(before[task]["correct"], after[task]["correct"]) for task in tasks]
        ).as_json(),
        "accuracy_against_predicted": difference(
            [(predicted[task].right, after[task]["correct"]) for task in known]
        ).as_json(),
        "calls_against_observed": difference(
            [(len(before[task]["calls"]), len(after[task]["calls"])) for task in tasks]
        ).as_json(),
    }

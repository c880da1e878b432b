"""Evaluation results as `almanac.evaluate` returns them, small."""

from typing import Any

from entrogate_lab.almanac.exhibits import Change, Exhibits, Trace, TraceTurn


def figures(**changed: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "tasks": 40,
        "accuracy": 0.65,
        "accuracy_ci": [0.49, 0.78],
        "calls_per_task": 4.0,
        "calls_ci": [3.5, 4.5],
        "oracle_calls_per_task": 1.1,
        "needless_calls_per_task": 2.9,
        "repeated_calls_per_task": 0.8,
        "completion_tokens": 12345,
        "wasted_tokens": 0,
        "wall_seconds": 30.0,
    }
    return base | changed


def result() -> dict[str, Any]:
    enforce: dict[str, Any] = {
        "accuracy": 0.66,
        "calls_per_task": 1.5,
        "calls_ci": [1.2, 1.8],
        "wasted_tokens": 210,
        "completion_tokens": 6000,
    }
    modes = {"observe": figures(), "enforce": figures(**enforce)}
    for mode in modes.values():
        mode["domains"] = {"facts": dict(mode), "sums": dict(mode)}
    return {"model": "almanac", "seed": 0, "modes": modes}


def trace() -> Trace:
    first = TraceTurn(
        entropy_lower=(0.1, None, 2.0),
        entropy_upper=(0.1, None, 2.5),
        reasoning=((0, 2),),
        text="where does Ada <Byron> live?",
        calls=('lookup {"entity": "Ada"}',),
        results=(),
    )
    second = TraceTurn(
        entropy_lower=(0.2, 0.0),
        entropy_upper=(0.3, 0.0),
        reasoning=((0, 1),),
        text="it says Rome → Rome",
        calls=(),
        results=("city: Rome & nothing else",),
    )
    return Trace(
        trajectory_id="traj_1",
        question="Where does Ada <Byron> live?",
        gold="Rome",
        answer="Rome",
        estimator="topk",
        turns=(first, second),
    )


def exhibits() -> Exhibits:
    changes = (
        Change(delta=-0.5, reduced=True, correct=True),
        Change(delta=-0.3, reduced=True, correct=False),
        Change(delta=0.4, reduced=False, correct=True),
        Change(delta=-0.2, reduced=True, correct=True),
        Change(delta=0.05, reduced=None, correct=True),
    )
    return Exhibits(trace=trace(), changes=changes, unlabelled={"short_segment": 3})

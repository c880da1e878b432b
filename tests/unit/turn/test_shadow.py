"""Which stored turns get a shadow, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from entrogate.gate.reasons import Reason
from entrogate.turn.shadow import purpose_of, shadow_draw
from entrogate.types import Action, Mode, ShadowPurpose, TurnRecord
from tests.unit.store.made import allowed_call, turn


def decided(trajectory_id: str = "t", *tools: str, **decision: Any) -> TurnRecord:
    """A turn that called ``tools``, all with this decision."""
    (call,) = allowed_call()
    made = replace(call, decision=replace(call.decision, **decision))
    calls = [replace(made, name=name, index=index) for index, name in enumerate(tools or ("a",))]
    return turn(trajectory_id, calls=calls)


@pytest.mark.parametrize(
    ("decision", "purpose"),
    [
        ({"mode": Mode.OBSERVE}, ShadowPurpose.SAMPLE),
        ({"mode": Mode.OBSERVE, "action": Action.SUPPRESS}, ShadowPurpose.SAMPLE),
        ({"applied": Action.SUPPRESS, "action": Action.SUPPRESS}, None),
        ({"applied": Action.SUPPRESS, "mode": Mode.EXPLORE}, None),
        ({"applied": Action.REPLAY, "action": Action.REPLAY}, ShadowPurpose.SAMPLE),
        ({"action": Action.SUPPRESS, "propensity": 0.05}, ShadowPurpose.AUDIT),
        (
            {"action": Action.SUPPRESS, "propensity": 1.0, "reason": Reason.GATE_FAULT},
            ShadowPurpose.SAMPLE,
        ),
        (
            {"action": Action.SUPPRESS, "propensity": 0.05, "mode": Mode.EXPLORE},
            ShadowPurpose.SAMPLE,
        ),
    ],
)
def test_by_what_was_decided(decision: dict[str, Any], purpose: ShadowPurpose | None) -> None:
    record = decided(**{"mode": Mode.ENFORCE, **decision})
    assert purpose_of(record, lambda _: 1.0) is purpose
    audited = purpose if purpose is ShadowPurpose.AUDIT else None
    assert purpose_of(record, lambda _: 0.0) is audited  # an audit is no matter of the share


def test_none_without_calls_without_choice_or_without_an_end() -> None:
    assert purpose_of(turn("t"), lambda _: 1.0) is None
    broken = replace(decided(), error="the client went away")
    assert purpose_of(broken, lambda _: 1.0) is None
    record = decided()
    (call,) = record.calls
    forced = replace(call, features=replace(call.features, tool_choice="required"))
    assert purpose_of(replace(record, calls=(forced,)), lambda _: 1.0) is None


def test_the_largest_share_of_the_tools_counts() -> None:
    shares = {"a": 0.0, "b": 1.0}
    assert purpose_of(decided("t", "a", "b"), shares.__getitem__) is ShadowPurpose.SAMPLE
    assert purpose_of(decided("t", "a", "a"), shares.__getitem__) is None


def test_the_draw_is_uniform_and_the_same_each_time() -> None:
    drawn = [shadow_draw(f"traj_{number}") for number in range(4000)]
    assert drawn == [shadow_draw(f"traj_{number}") for number in range(4000)]
    for share in (0.05, 0.2, 0.5, 0.9):
        n = sum(draw < share for draw in drawn)
        spread = (4000 * share * (1 - share)) ** 0.5
        assert abs(n - 4000 * share) < 4 * spread

"""The rules of a policy that calibration sets, and a policy with others in their place."""

from __future__ import annotations

from collections.abc import Sequence

from entrogate.calibrate.result import Row
from entrogate.gate.schema import Policy, Signal, Statistic, ToolRule


def gated_tools(policy: Policy) -> list[str]:
    """The tools whose threshold may be chosen: named, without side effects, and not set to null."""
    return [
        name
        for name, rule in policy.tools.items()
        if not rule.side_effects
        and not ("threshold" in rule.model_fields_set and rule.threshold is None)
    ]


def with_threshold(
    policy: Policy, tools: Sequence[str], signal: Signal, threshold: float | None
) -> Policy:
    """``policy`` with this signal and threshold for ``tools``, whatever they had before."""
    rules = {
        name: _changed(rule, {"signal": signal, "threshold": threshold}) if name in tools else rule
        for name, rule in policy.tools.items()
    }
    return with_fields(policy, tools=rules)


def loosest(policy: Policy) -> Policy:
    """``policy`` with thresholds that suppress whatever any threshold of any signal could."""
    return with_threshold(policy, gated_tools(policy), Signal(statistic=Statistic.UNIFORM), 1.0)


def with_fields(policy: Policy, **values: object) -> Policy:
    """``policy`` with other values of some fields. (`model_copy` would keep the cached version.)"""
    own = {name: getattr(policy, name) for name in policy.model_fields_set}
    return Policy.model_validate(own | values, context={"can_force": True})


def _changed(rule: ToolRule, values: dict[str, object], *, without: Sequence[str] = ()) -> ToolRule:
    own = {name: getattr(rule, name) for name in rule.model_fields_set if name not in without}
    return ToolRule.model_validate(own | values)


def certified_policy(
    base: Policy, tools: Sequence[str], rows: Sequence[Row], *, pooled: bool
) -> Policy:
    """``base`` with the certified thresholds; tools without one are gated by other rules only."""
    name = base.name if base.name.endswith("-calibrated") else f"{base.name[:53]}-calibrated"
    if pooled:
        row = rows[0]
        assert row.signal is not None
        cleared = {
            tool: _changed(rule, {}, without=("threshold", "signal")) if tool in tools else rule
            for tool, rule in base.tools.items()
        }
        unseen = [tool for tool in gated_tools(base) if tool not in tools]
        defaults = base.defaults.model_copy(update={"threshold": row.threshold})
        policy = with_fields(
            base, name=name, signal=row.signal, defaults=defaults, tools=cleared, calibration=None
        )
        for tool in unseen:
            policy = _ungated(policy, tool)
        return policy
    policy = with_fields(base, name=name, calibration=None)
    certified = {row.tool: row for row in rows}
    for tool in gated_tools(base):
        row = certified.get(tool)
        if row is None or row.signal is None:
            policy = _ungated(policy, tool)
        else:
            policy = with_threshold(policy, [tool], row.signal, row.threshold)
    return policy


def _ungated(policy: Policy, tool: str) -> Policy:
    rule = _changed(policy.tools[tool], {"threshold": None}, without=("signal",))
    return with_fields(policy, tools=dict(policy.tools) | {tool: rule})

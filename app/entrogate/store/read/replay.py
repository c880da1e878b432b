"""Deciding again over stored features: what was decided, or what another policy would decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from entrogate.gate.decide import decide_turn
from entrogate.gate.policy import parse_policy
from entrogate.gate.reasons import Reason
from entrogate.gate.schema import Policy
from entrogate.store.read.decisions import DecidedTurn
from entrogate.store.store import Store
from entrogate.types import Decision

_EXAMPLES = 20


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """Counts of calls; ``changed`` by (tool, stored action, new action).

    Under its own policy a call is equal when the whole decision is, under a given one when the
    action is. The mode is the one in which the call was decided.
    """

    policy: str | None  # name and version of the given policy; None: each call under its own
    turns: int = 0
    calls: int = 0
    equal: int = 0
    no_policy: Counter[str] = field(default_factory=Counter[str])  # calls by unknown version
    stored: Counter[str] = field(default_factory=Counter[str])  # calls by stored action
    replayed: Counter[str] = field(default_factory=Counter[str])  # calls by new action
    changed: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def mismatches(self) -> int:
        """Calls that are not equal."""
        return self.calls - self.equal

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "policy": self.policy,
            "turns": self.turns,
            "calls": self.calls,
            "equal": self.equal,
            "mismatches": self.mismatches,
            "no_policy": dict(self.no_policy),
            "stored_actions": dict(self.stored),
            "replayed_actions": dict(self.replayed),
            "changed": [
                {"tool": tool, "stored": stored, "replayed": replayed, "calls": count}
                for (tool, stored, replayed), count in self.changed.most_common()
            ],
            "examples": self.examples,
        }


def replay_store(store: Store, policy: Policy | None) -> ReplayReport:
    """Decide every stored call again, under ``policy`` or under the one it was decided by."""
    known: dict[str, Policy | None] = {}

    def policy_of(version: str) -> Policy | None:
        if version not in known:
            text = store.policy_text(version)
            label = f"stored policy {version}"
            known[version] = None if text is None else parse_policy(text, label, can_force=True)
        return known[version]

    report = ReplayReport(policy=None if policy is None else f"{policy.name} {policy.version}")
    for turn in store.iter_decisions():
        _replay_turn(report, turn, policy or policy_of(turn.calls[0].decision.policy_version))
    return report


def replay_turns(turns: Iterable[DecidedTurn], policy: Policy) -> ReplayReport:
    """The same over turns in hand, under one policy."""
    report = ReplayReport(policy=f"{policy.name} {policy.version}")
    for turn in turns:
        _replay_turn(report, turn, policy)
    return report


def _replay_turn(report: ReplayReport, turn: DecidedTurn, policy: Policy | None) -> None:
    if policy is None:
        report.no_policy.update(call.decision.policy_version for call in turn.calls)
        return
    report.turns += 1
    mode = turn.calls[0].decision.mode
    again = decide_turn(policy, mode, [call.features for call in turn.calls])
    given = report.policy is not None
    for call, decision in zip(turn.calls, again, strict=True):
        report.calls += 1
        stored = call.decision
        report.stored[stored.action.value] += 1
        report.replayed[decision.action.value] += 1
        if _equal(stored, decision, by_action=given):
            report.equal += 1
            continue
        report.changed[call.name, stored.action.value, decision.action.value] += 1
        if len(report.examples) < _EXAMPLES:
            report.examples.append(
                {
                    "trajectory_id": turn.trajectory_id,
                    "turn_index": turn.turn_index,
                    "call_id": call.call_id,
                    "tool": call.name,
                    "stored": _shown(stored),
                    "replayed": _shown(decision),
                }
            )


def _equal(stored: Decision, decided: Decision, *, by_action: bool) -> bool:
    """A decision that failed open was taken as it is again, only not carried out."""
    if by_action or stored.reason == Reason.GATE_FAULT:
        return stored.action is decided.action
    return stored == decided


def _shown(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action.value,
        "applied": decision.applied.value,
        "reason": decision.reason,
        "propensity": decision.propensity,
        "policy_version": decision.policy_version,
    }

"""Numbers to a decision: policy schema, rules, propensities."""

from entrogate.gate.decide import decide_turn
from entrogate.gate.policy import bundled_policies, load_policy, parse_policy
from entrogate.gate.reasons import Reason
from entrogate.gate.rules import signal_value
from entrogate.gate.schema import Policy, Signal, Statistic, ToolRule

__all__ = [
    "Policy",
    "Reason",
    "Signal",
    "Statistic",
    "ToolRule",
    "bundled_policies",
    "decide_turn",
    "load_policy",
    "parse_policy",
    "signal_value",
]

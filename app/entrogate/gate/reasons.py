"""Why the gate decided as it did: the whole vocabulary, stored and used as a metric label."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """One word per rule, in the order in which the rules are tried."""

    NOT_NAMED = "not_named"  # the policy does not name the tool
    SIDE_EFFECTS = "side_effects"  # the policy says that the tool must never be gated
    TOOL_CHOICE = "tool_choice"  # the client demands a call, or a grammar shapes the answer
    TRAJECTORY_BUDGET = "trajectory_budget"  # calls_per_trajectory used up
    TOOL_BUDGET = "tool_budget"  # max_calls of the tool used up
    CIRCLE = "circle"  # the calls and their results go round in a circle
    CERTAIN = "certain"  # by the signal the model is certain without the tool
    RANDOM = "random"  # statistic `uniform`: suppressed by the draw
    REPEAT = "repeat"  # an identical earlier call
    REPLAY_LIMIT = "replay_limit"  # a repeat, after enough replays in this turn
    RESULT_MISSING = "result_missing"  # a repeat to replay, but its result is not in the history
    RESULT_INVALIDATED = "result_invalidated"  # a repeat, after a call that may have changed it
    RESULT_STALE = "result_stale"  # a repeat, its result too old or of unknown age
    RESULT_FAILED = "result_failed"  # a repeat to replay, but its result was an error
    RETRY_LIMIT = "retry_limit"  # a repeat, after enough errors in a row
    CAPTURE_GAP = "capture_gap"  # the signal cannot be trusted: fail open
    NO_DRAFT = "no_draft"  # the answer without the call could not be begun: fail open
    NO_SEGMENT = "no_segment"  # no token of reasoning: fail open
    SHORT_SEGMENT = "short_segment"  # fewer than min_tokens: fail open
    NO_VALUE = "no_value"  # the statistic is unknown for this segment: fail open
    UNCERTAIN = "uncertain"  # the signal says that the call is worth making
    UNCERTAIN_ANSWER = "uncertain_answer"  # forced: the answer was too uncertain without a call
    NO_RULE = "no_rule"  # no rule of this tool applies
    GATE_FAULT = "gate_fault"  # it could not be carried out: the call went through
    MIXED_TURN = "mixed_turn"  # parallel calls with different answers: all go through


FAIL_OPEN = frozenset(
    {
        Reason.CAPTURE_GAP,
        Reason.NO_DRAFT,
        Reason.NO_SEGMENT,
        Reason.SHORT_SEGMENT,
        Reason.NO_VALUE,
    }
)
UNTOUCHABLE = frozenset(
    {Reason.NOT_NAMED, Reason.SIDE_EFFECTS, Reason.TOOL_CHOICE, Reason.UNCERTAIN_ANSWER}
)
AUDITED = frozenset({Reason.CERTAIN, Reason.RANDOM})
"""Suppressed by a signal, which can be wrong; budgets, repeats and circles are fixed rules."""

"""Why `entrogate policy evaluate` cannot use a trajectory."""

from __future__ import annotations

from enum import StrEnum


class LeftOut(StrEnum):
    """Why a trajectory belongs to no log; the first reason that holds."""

    OTHER = "other_model"  # not the model or the weights that were asked for
    UNREADABLE = "unreadable"  # decisions that are none: features, propensities, durations
    BROKEN_OFF = "broken_off"  # a turn failed, or was not recorded
    MIXED_WEIGHTS = "mixed_weights"  # several models or weights answered it
    MIXED_MODES = "mixed_modes"  # some of its calls were enforced, some explored
    ENFORCED = "enforced"  # all of its calls were: nothing was left to chance
    CONTRADICTORY = "contradictory_outcomes"  # feedback calls it right and wrong
    NO_CALLS = "no_calls"  # observed, and no call was proposed
    NOT_GATED = "not_gated"  # observed, and the policy could suppress none of its calls
    NO_SHADOW = "no_shadow"  # observed, and a call that could be suppressed has no shadow

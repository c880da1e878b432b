"""What the store gives of recorded trajectories, and of figures over them.

The fields in their order are the JSON of ``/v1/trajectories`` and of ``entrogate trajectories``:
orjson writes a row as an object. Times are in seconds since the epoch, entropies in nats. What
clients and models wrote (metadata, parameters, messages, tools) is any JSON, as it was stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrogate.types import ToolResult

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of one number in nats, equal for an exact estimator; None means not a number."""

    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectorySummary:
    """A trajectory without its turns: the columns of its table, and whether it is complete."""

    id: str
    schema_version: int
    tenant: str  # "" is the default tenant
    task_id: str | None  # None: the client named no task
    model: str
    mode: str | None  # None: no call was decided yet
    metadata: Any  # None: the client gave none
    created_at: float
    updated_at: float
    n_turns: int
    n_branches: int
    n_calls: int
    n_suppressed: int
    n_replayed: int
    completion_tokens: int
    wasted_tokens: int
    incomplete_reason: str | None  # None: complete
    outcome: float | None  # in [0, 1]; None: no feedback yet
    sequence: int  # of the commit that changed it last
    policy_version: str  # of its latest turn; "": an earlier release recorded it
    policy_changes: int  # times that it went on under another policy
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTrajectory(TrajectorySummary):
    """A trajectory in a list."""

    sparse_reward: float | None  # None: no outcome yet, or no label is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Statistics of a turn's reasoning segment, tokens [start, stop) of those sampled.

    ``p_tool_call`` is a probability. A margin of None means that it is not known.
    """

    start: int
    stop: int
    n_tokens: int
    estimator: str
    mean: Bounds
    max: Bounds
    tail_mean: Bounds
    last_window: Bounds
    margin_mean: float | None
    margin_min: float | None
    p_tool_call: float | None
    sum: Bounds | None
    logprob_sum: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """Sampled tokens [start, stop) of one kind: reasoning, call, answer or control."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDecision:
    """What the policy said of a call (``action``) and what was done (``applied``)."""

    action: str
    applied: str
    reason: str
    propensity: float  # probability of ``applied`` under the policy and the mode
    mode: str
    policy_name: str
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that the model proposed; ``features`` are what the gate saw."""

    id: str
    position: int
    name: str
    arguments: str  # as the model wrote them
    features: Json
    decision: CallDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How entropy changed over the calls before a turn; None is unknown.

    ``null_reason`` says why ``reduced`` or ``delta`` is None, and is None where both are known.
    """

    before: Bounds | None
    after: Bounds | None
    delta: Bounds | None
    delta_normalised: float | None  # a ratio, not nats
    reduced: bool | None
    null_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What the model would have said in place of a turn's calls, after ``n_kept`` of its tokens.

    ``score`` in [0, 1] is how right ``content`` is, ``judged_by`` (gold, grader or agreement) where
    that comes from; both are None while nothing is known.
    """

    purpose: str  # sample or audit
    way: str  # mask or no_tools
    created_at: float
    duration_seconds: float
    model: str
    weight_version: str
    finish_reason: str | None
    called: bool
    content: str
    capture_gap: str | None  # None: everything was captured
    n_kept: int
    n_tokens: int
    estimator: str
    top_k: int | None  # None: exact
    score: float | None
    judged_by: str | None
    judged_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowTokens:
    """The arrays of a shadow, as long as its tokens; see `Tokens`."""

    token_ids: list[int]
    logprobs: list[float | None]
    entropy_lower: list[float | None]
    entropy_upper: list[float | None]
    margin: list[float | None]
    tail_mass: list[float | None]
    p_tool_call: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowWithTokens(Shadow):
    """A shadow with its token arrays."""

    tokens: ShadowTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of the model with what was new in its request; no token arrays."""

    id: str
    turn_index: int
    branch_index: int
    parent_id: str | None  # None: a first turn, or the turn before it is not stored
    request_id: str
    response_id: str
    choice_index: int
    created_at: float
    duration_seconds: float
    model: str
    weight_version: str  # "": unknown
    finish_reason: str | None  # None: broke off
    error: str | None  # None: did not break off
    capture_gap: str | None  # None: everything was captured
    replayed: bool
    n_messages: int
    n_prompt_tokens: int
    n_tokens: int
    wasted_tokens: int
    estimator: str
    top_k: int | None  # None: exact
    key_id: str | None  # None: no API key was needed
    segment: Segment | None  # None: no reasoning that could be measured
    spans: tuple[SpanRow, ...]
    altered: Any
    metadata: Any
    toolset_id: str | None  # hexadecimal; None: no tools
    params: Json
    messages: list[Json]
    response: Json
    calls: tuple[Call, ...]
    results: tuple[ToolResult, ...]
    change: Change | None  # None: no label is due
    dense_reward: float | None  # None: no outcome yet, or no label
    shadow: Shadow | None  # None: none was decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The arrays of a turn. All but the prompt's are as long as the sampled tokens.

    None in an array is a value that is not known. ``margin`` and ``logprobs`` are in nats,
    ``tail_mass`` and ``p_tool_call`` are probabilities.
    """

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float | None]
    entropy_lower: list[float | None]
    entropy_upper: list[float | None]
    margin: list[float | None]
    tail_mass: list[float | None]
    p_tool_call: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWithTokens(Turn):
    """A turn with its token arrays."""

    tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFeedback:
    """One outcome that was reported; the last one of a trajectory counts."""

    id: int
    trajectory_id: str
    turn_id: str | None  # the last turn that it speaks of; None: that turn is gone
    target: str  # trajectory_id, response_id or tool_call_id
    target_id: str
    score: float  # in [0, 1]
    answer: str | None  # None: a score was given
    gold: Any  # what the answer was compared with; None: a score was given
    comment: str | None
    created_at: float
    key_id: str | None  # None: no API key was needed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRewards:
    """The rewards of a trajectory that has an outcome, and the settings they were computed with."""

    trajectory_id: str
    turn_id: str
    outcome: float
    sparse: float | None  # None: no label is known
    n_groups: int
    n_labelled: int
    n_reduced: int
    alpha: float
    no_calls: str
    all_unknown: str
    computed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(TrajectorySummary):
    """Everything stored of one trajectory; its turns are `TurnWithTokens` where asked for."""

    turns: tuple[Turn, ...]
    toolsets: Json  # lists of tools, by the hexadecimal id that turns name
    feedback: tuple[GivenFeedback, ...]
    rewards: TrajectoryRewards | None  # None: no outcome yet


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryFigures:
    """What the overview looks at of one trajectory."""

    id: str
    created_at: float
    n_calls: int
    n_suppressed: int
    n_replayed: int
    outcome: float | None  # in [0, 1]; None: no feedback yet
    policy_version: str  # of its latest turn; "": not known
    policy_changes: int  # times that it went on under another policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDecisions:
    """``n`` calls of the tool ``name`` became ``applied``."""

    name: str
    applied: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChange:
    """How entropy changed over the calls of the tool ``name``."""

    name: str
    n: int
    n_known: int  # of them, those of which it is known whether entropy fell
    n_reduced: int
    mean: float | None  # nats, of the midpoints; None: no change is known


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUse:
    """``n`` calls that one version of a policy decided, and when its turns began."""

    policy_name: str
    policy_version: str
    n: int
    first: float
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsUse:
    """``n`` turns that one version of the weights answered, and when they began."""

    weight_version: str  # "": unknown
    n: int
    first: float
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Figures over the latest trajectories; ``trajectories`` the newest first."""

    trajectories: tuple[TrajectoryFigures, ...]
    decisions: tuple[ToolDecisions, ...]
    changes: tuple[ToolChange, ...]
    policies: tuple[PolicyUse, ...]
    weights: tuple[WeightsUse, ...]
    policy_names: Mapping[str, str]  # by version

"""The values that pass between stages: frozen, slotted, keyword-only.

Entropies are in nats, times in seconds since the epoch, token positions count the sampled tokens of
one turn from 0. A missing value is ``None`` (``nan`` inside arrays), never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


class Mode(StrEnum):
    """What the gate may change: nothing, what the policy says, or that with logged randomness."""

    OBSERVE = "observe"
    ENFORCE = "enforce"
    EXPLORE = "explore"


class Action(StrEnum):
    """What becomes of a tool call (see the vocabulary in docs/concepts.md)."""

    ALLOW = "allow"
    SUPPRESS = "suppress"
    REPLAY = "replay"
    FORCE = "force"


class Estimator(StrEnum):
    """How an entropy was obtained: over the whole vocabulary, or bounded from k log-probs."""

    EXACT = "exact"
    TOPK = "topk"


class SpanKind(IntEnum):
    """What a sampled token belongs to; the numbers are stored and exported, never renumber."""

    REASONING = 0
    CALL = 1
    ANSWER = 2
    RESULT = 3
    PROMPT = 4
    CONTROL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of one number; equal for an exact estimator."""

    lower: float
    upper: float

    @property
    def midpoint(self) -> float:
        """Half-way between the bounds, in their unit; infinite where ``upper`` is."""
        return (self.lower + self.upper) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Sampled tokens [start, stop) of one kind."""

    kind: SpanKind
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What the engine said of the sampled tokens of one choice. Every array has length T.

    ``logprobs`` are those of the sampled tokens: under the raw distribution for estimator ``topk``,
    under the one that was sampled from (temperature, top-k/top-p) for ``exact``. ``margin`` is the
    gap between the two largest log-probs; ``tail_mass`` the probability outside the k returned
    ones; ``p_tool_call`` the probability of the tool-call token (``nan`` where it was not
    returned).
    """

    token_ids: IntArray
    logprobs: FloatArray
    entropy_lower: FloatArray
    entropy_upper: FloatArray
    margin: FloatArray
    tail_mass: FloatArray
    p_tool_call: FloatArray
    estimator: Estimator
    top_k: int | None

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name in ("logprobs", "entropy_lower", "entropy_upper", "margin", "tail_mass"):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} items, token_ids {length}")
        if len(self.p_tool_call) != length:
            raise ValueError(f"p_tool_call has {len(self.p_tool_call)} items, token_ids {length}")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStats:
    """Statistics of the token entropies of one reasoning segment (r_k of the paper)."""

    start: int
    stop: int
    n_tokens: int
    estimator: Estimator
    mean: Interval
    max: Interval
    tail_mean: Interval
    last_window: Interval
    margin_mean: float
    margin_min: float
    p_tool_call: float | None
    sum: Interval | None = None  # None: measured before sums were kept
    logprob_sum: float | None = None  # of the sampled tokens, as `Capture.logprobs` has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Everything the gate may look at for one proposed call; stored with the decision.

    ``segment`` is None when the turn has no usable segment (no tokens, or a capture gap).
    ``draw`` is uniform on [0, 1): the only randomness a decision may use.
    """

    tool: str
    segment: SegmentStats | None
    capture_complete: bool
    tool_choice: str  # auto | required | named | none | constrained (by a grammar)
    repeats: int  # identical earlier calls (name and canonical arguments) in the message history
    replayable: bool  # one of them has its result in the history
    calls_before: int  # calls in the message history
    tool_calls_before: int  # of them, calls of this tool
    parallel_calls: int  # calls proposed in this turn, this one included
    replays_in_turn: int  # results already replayed in this turn
    draw: float
    arguments_valid: bool = True  # the arguments parse as a JSON object
    forced: bool = False  # the engine's gate made a call of what would have been an answer
    draft: SegmentStats | None = None  # the first tokens of the answer without the call
    delta: float | None = None  # ΔH since the turn before, nats, where that turn had calls
    near_repeats: int = 0  # earlier calls equal under the tool's rules, identical ones included
    result_age_seconds: float | None = None  # of the result that would be replayed
    result_failed: bool = False  # that result was an error
    failures: int = 0  # errors in a row since the user last spoke, that one included; at most 8
    called_since: tuple[str, ...] = ()  # tools called after that result, sorted, at most 64
    circle_rounds: int = 0  # complete rounds that the calls, this one included, go in a circle
    p_sampled: float | None = None  # of a call that the engine masked: else it had been sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy said of one call (`action`) and what was done (`applied`)."""

    action: Action
    applied: Action
    reason: str  # bounded vocabulary, see gate/reasons
    propensity: float  # probability of `applied` under the policy and mode
    mode: Mode
    policy_name: str
    policy_version: str

    @property
    def is_audited(self) -> bool:
        """Did the audit let the call through, although the policy suppresses it?"""
        return (
            self.mode is Mode.ENFORCE
            and self.action is Action.SUPPRESS
            and self.applied is Action.ALLOW
            and self.propensity < 1.0  # 1: a fault let it through
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One tool call that the model proposed, with the decision on it."""

    call_id: str  # minted by us; what the client sees
    index: int
    name: str
    arguments: str  # as the model wrote them
    features: Features
    decision: Decision

    @property
    def likely(self) -> bool:
        """Was it sampled, or would it have been, more likely than not, had it not been masked?

        Only such calls are counted. The others are kept for estimates from logged propensities.
        """
        p_sampled = self.features.p_sampled
        return p_sampled is None or p_sampled >= 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A result that the client brought back for one of our calls."""

    call_id: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyChange:
    """Label of the call group between a parent turn and this one.

    In the terms of arXiv 2602.02050: ``delta`` is ΔH_k = H(r_k) − H(r_{k−1}) in nats, ``reduced``
    I_k = 1[ΔH_k < 0], ``delta_normalised`` ΔH_k / (H(r_{k−1}) + 1e-8).

    ``reduced`` and ``delta`` are None when unknown, and then ``null_reason`` says why
    (short_segment, overlapping_bounds, incomplete_capture, missing_segment, no_call).
    """

    before: Interval | None
    after: Interval | None
    delta: Interval | None
    delta_normalised: float | None
    reduced: bool | None
    null_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """An answer as it was recorded, and what it was asked with."""

    created_at: float  # seconds since the epoch
    duration_seconds: float
    model: str
    finish_reason: str | None
    error: str | None
    n_prompt_tokens: int
    n_tokens: int
    message: dict[str, Any]
    tools: list[dict[str, Any]]
    params: dict[str, Any]
    instructions: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHead:
    """What linkage keeps of an earlier turn: enough to attach the next one to it."""

    turn_id: str
    trajectory_id: str
    turn_index: int
    branch_index: int
    n_messages: int  # messages of the request plus the response: where the next delta starts
    sequence_length: int  # prompt + sampled tokens
    sequence_hash: bytes  # blake2b-128 of their int32 bytes
    segment: SegmentStats | None
    capture_complete: bool
    has_calls: bool
    weight_version: str = ""
    policy_version: str = ""  # of its trajectory; "": not known (an earlier release recorded it)
    audited: bool = False  # a call of its trajectory was let through for the audit


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One assistant response as it is stored; arrays are parallel to ``capture.token_ids``."""

    turn_id: str
    trajectory_id: str
    task_id: str | None
    parent: TurnHead | None
    request_id: str
    response_id: str
    choice_index: int
    created_at: float
    duration_seconds: float
    model: str
    new_messages: bytes  # JSON list: request messages after the parent's (all when no parent)
    n_messages: int  # messages of the request, this response included
    tools: bytes | None  # JSON as the client sent it
    params: bytes  # JSON of every other request field
    response: bytes  # JSON of the assistant message as the client received it
    finish_reason: str | None
    prompt_token_ids: IntArray
    capture: Capture
    spans: tuple[Span, ...]
    segment: SegmentStats | None
    altered: tuple[tuple[int, int], ...]  # token ranges whose distribution the gate changed
    capture_gap: str | None  # why the capture is incomplete; None when it is complete
    wasted_tokens: int  # sampled for suppressed calls and unused drafts, and thrown away
    calls: tuple[CallRecord, ...]
    results: tuple[ToolResult, ...]
    change: EntropyChange | None
    fingerprint: bytes  # of the message history including the response, for linkage
    sequence_hash: bytes
    replayed: bool = False  # an internal turn: its call was replayed, the client never saw it
    weight_version: str = ""  # of the weights that answered, `BASE_WEIGHTS` where no LoRA did
    policy_version: str = ""  # of the policy that decided, or would have, had there been a call
    metadata: dict[str, str] | None = None
    error: str | None = None  # the turn broke off: the upstream failed or the client went away
    key_id: str | None = None  # of the API key that asked; None where none is needed

    @property
    def complete(self) -> bool:
        """Whether every sampled token was captured. Only such turns get labels."""
        return self.capture_gap is None


class ShadowPurpose(StrEnum):
    """Why a shadow was decoded: its trajectory was sampled, or its call was let through to audit
    the policy."""

    SAMPLE = "sample"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRecord:
    """What the model would have said in place of the calls of a turn, as it is stored.

    ``capture`` begins where the first call did, after ``n_kept`` sampled tokens of the turn.
    ``content`` is the text of the whole answer, what the kept tokens say included, without
    reasoning.
    """

    turn_id: str
    trajectory_id: str
    purpose: ShadowPurpose
    way: str  # mask or no_tools, see `turn.without`
    created_at: float
    duration_seconds: float
    model: str
    weight_version: str
    finish_reason: str | None
    called: bool  # the text spells a call all the same
    content: str
    capture: Capture
    capture_gap: str | None  # why the capture is incomplete; None when it is complete
    n_kept: int


BASE_WEIGHTS = "base"
"""Version of the weights that the model server was started with."""


class WeightsState(StrEnum):
    """Where published weights stand: answering, or on their way out after a roll back."""

    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """A LoRA that may answer requests for the model ``model``, as it is stored.

    ``share`` is that of a canary. Of the versions that were promoted the latest one gets what the
    canaries leave, and the base model where none was.
    """

    model: str
    version: str
    name: str  # what the model server calls it
    folder: str
    rank: int
    share: float
    promoted_at: float | None
    state: WeightsState
    published_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a reading of trajectories came, in the order of commits.

    ``written_at`` of that commit tells whether a store still has the same history: one that was
    restored from a copy gives the numbers after it a second time.
    """

    sequence: int
    written_at: float  # seconds since the epoch

"""Asks the gate about the calls of one choice: gathers the features, keeps the decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import orjson

from entrogate.engine.gate import GateNumbers
from entrogate.entropy.statistics import segment_stats
from entrogate.gate.compile import compile_gate
from entrogate.gate.decide import decide_turn
from entrogate.gate.loops import UNSEEN, Loops, Seen
from entrogate.gate.policy import Policy
from entrogate.gate.reasons import Reason
from entrogate.gate.schema import Signal
from entrogate.gate.unseen import settled
from entrogate.segments.spans import Markers, call_gap, find_spans, reasoning_ranges
from entrogate.turn.choice import Choice, ProposedCall
from entrogate.turn.ids import mint_call
from entrogate.turn.without import Draft
from entrogate.types import (
    Action,
    CallRecord,
    Decision,
    Features,
    Mode,
    SegmentStats,
    Span,
    TurnHead,
)
from entrogate.wire.history import CallHistory

UNSAMPLED = "(unsampled)"  # stands for the name of a tool that the engine never let be named
_LIKELY = 0.5  # from here on a masked tool-call token is kept as a suppressed call in any mode


@dataclass(slots=True, kw_only=True)
class Judge:
    """Decides on the calls of one request; ``draw`` is its share of randomness."""

    policy: Policy
    mode: Mode
    markers: Markers
    tool_choice: str
    earlier: CallHistory
    blown: frozenset[str] = frozenset()  # tools whose fuse is blown: they are only observed
    starts_in_reasoning: bool = False
    parent: TurnHead | None = None  # the turn before this one
    can_replay: bool = True
    replays: int = 0
    seconds: float = 0.0  # spent deciding, for the overhead histogram
    draws: dict[int, float] = field(default_factory=dict[int, float])
    drafts: dict[int, Draft] = field(default_factory=dict[int, Draft])
    now: Callable[[], float] = time.time  # seconds since the epoch
    loops: Loops = field(init=False)

    def __post_init__(self) -> None:
        self.loops = Loops(self.policy, self.earlier)

    @property
    def _by_chance(self) -> bool:
        """Does what is done about a call depend on the draw?"""
        audits = self.mode is Mode.ENFORCE and self.policy.audit is not None
        return audits or self.mode is Mode.EXPLORE

    @property
    def acts(self) -> bool:
        """Could a call of this request be held back at all?"""
        return self.mode is not Mode.OBSERVE and self.tool_choice == "auto"

    def gates(self, name: str) -> bool:
        """Does the policy name the tool at all, and allow it to be gated?"""
        rule = self.policy.rule(name)
        return rule is not None and not rule.side_effects and name not in self.blown

    def mode_for(self, names: Iterable[str]) -> Mode:
        """The mode in which a turn is decided that calls these tools."""
        return self.mode if self.blown.isdisjoint(names) else Mode.OBSERVE

    def draw_for(self, choice: Choice, fresh: float) -> None:
        """Fix a choice's random draw, in [0, 1). The first one stands, also after a resume."""
        self.draws.setdefault(choice.index, fresh)

    def note_replay(self) -> None:
        """A result was replayed: what follows is another answer, with a draw and a draft anew."""
        self.replays += 1
        self.draws.clear()
        self.drafts.clear()

    def decide_early(self, choice: Choice) -> tuple[CallRecord, ...]:
        """The decision to suppress the first call by its name and the entropy alone.

        Empty unless no argument could change that: then the rest of the call need not be decoded.
        """
        records = self._decide(choice, choice.proposed()[:1], complete=False)
        done = settled(self.policy, records[0].decision.mode, records[0].features)
        return records if done is Action.SUPPRESS else ()

    def decide(self, choice: Choice) -> tuple[CallRecord, ...]:
        """The decisions on all calls of ``choice``, in order."""
        return self._decide(choice, choice.proposed(), complete=True)

    def lacks_draft(self, record: CallRecord) -> bool:
        """Could the beginning of the answer without the call change the decision on it?"""
        waits = record.decision.reason in (Reason.NO_DRAFT, Reason.MIXED_TURN)
        return waits and record.features.draft is None and self._signal(record.name).needs_draft

    def draft_tokens(self, choice: Choice) -> int:
        """How long the draft of ``choice`` has to be for the tools that it calls."""
        return max(self._signal(call.name).draft_tokens for call in choice.proposed())

    def _signal(self, tool: str) -> Signal:
        return self.policy.signal_for(tool)

    def decide_faulted(self, choice: Choice) -> tuple[CallRecord, ...]:
        """The calls of ``choice`` let through, because deciding on them failed."""
        decision = Decision(
            action=Action.ALLOW,
            applied=Action.ALLOW,
            reason=Reason.GATE_FAULT,
            propensity=1.0,
            mode=self.mode_for(call.name for call in choice.proposed()),
            policy_name=self.policy.name,
            policy_version=self.policy.version,
        )
        return tuple(
            CallRecord(
                call_id=call.call_id,
                index=call.index,
                name=call.name,
                arguments=call.arguments,
                features=Features(
                    tool=call.name,
                    segment=None,
                    capture_complete=False,
                    tool_choice=self.tool_choice,
                    repeats=0,
                    replayable=False,
                    calls_before=len(self.earlier),
                    tool_calls_before=0,
                    parallel_calls=len(choice.calls.calls),
                    replays_in_turn=self.replays,
                    draw=self.draws.get(choice.index, 0.0),
                ),
                decision=decision,
            )
            for call in choice.proposed()
        )

    def numbers(
        self, choice: Choice, tools: list[str], blank_ids: frozenset[int], *, may_force: bool
    ) -> GateNumbers | None:
        """The policy as the gate in the engine needs it for a call of any of ``tools``."""
        named = [tool for tool in dict.fromkeys(tools) if self.policy.rule(tool) is not None]
        # A request may offer thousands of tools; those that the policy does not name are alike.
        other = next((tool for tool in tools if self.policy.rule(tool) is None), None)
        asked = named if other is None else [*named, other]
        offered = [self._features(choice, _unsampled(tool, ""), None, 1) for tool in asked]
        return compile_gate(
            self.policy,
            self.mode,
            offered,
            self.markers,
            blank_ids=blank_ids,
            may_force=may_force,
            observed=self.blown,
        )

    def decide_unsampled(self, choice: Choice, tools: list[str]) -> tuple[CallRecord, ...]:
        """The decision that the engine took before a call was sampled.

        Where the mode leaves something to chance every such decision is kept, with the probability
        that a call would have been sampled: estimates weigh it with that (docs/evaluation.md). Else
        only those where a call was likely. The tool is not known: the features name the first
        one on offer, for the policy treats all of them alike (`compile_gate`).
        """
        gated = choice.tokens.gated
        if gated is None or gated.action != "suppress":
            return ()
        p_sampled = choice.tokens.p_masked
        kept = self._by_chance and p_sampled > 0.0
        if not kept and gated.p_tool_call < _LIKELY:
            return ()
        if choice.tokens.gap is not None:
            return ()  # what the engine saw did not arrive: no features to store
        started = time.perf_counter()
        spans = self.spans(choice, gated.position)
        segment = segment_stats(
            choice.tokens.capture(), reasoning_ranges(spans), decision_at=gated.position
        )
        call = _unsampled(tools[0], mint_call(self.now()))
        features = replace(self._features(choice, call, segment, 1), p_sampled=p_sampled)
        decision = decide_turn(self.policy, self.mode, [features])[0]
        self.seconds += time.perf_counter() - started
        return (
            CallRecord(
                call_id=call.call_id,
                index=0,
                name=UNSAMPLED,
                arguments="",
                features=features,
                decision=decision,
            ),
        )

    def spans(self, choice: Choice, stop: int | None = None) -> tuple[Span, ...]:
        """The spans of the tokens so far, or of those before ``stop``."""
        return find_spans(
            choice.tokens.ids[:stop],
            self.markers,
            stopped=stop is None and choice.finish_reason in ("stop", "tool_calls"),
            starts_in_reasoning=self.starts_in_reasoning,
        )

    def gap(self, choice: Choice) -> str | None:
        """Why the reasoning of ``choice``, which called, cannot be told from its call."""
        return call_gap(self.spans(choice), self.markers, called=True)

    def segment(self, choice: Choice, spans: tuple[Span, ...] | None = None) -> SegmentStats | None:
        """Statistics of what was reasoned before the call (of the turn, when there is none).

        ``spans`` saves finding them again for a turn without a call.
        """
        if choice.tokens.gap is not None:
            return None
        position = choice.tokens.call_position()
        if spans is None or position is not None:
            spans = self.spans(choice, position)
        return segment_stats(choice.tokens.capture(), reasoning_ranges(spans), decision_at=position)

    def _decide(
        self, choice: Choice, calls: list[ProposedCall], *, complete: bool
    ) -> tuple[CallRecord, ...]:
        started = time.perf_counter()
        segment = self.segment(choice)
        parallel = len(calls)
        looked: Sequence[Seen | None] = (
            self.loops.look([(call.name, call.arguments) for call in calls], self.now())
            if complete
            else [None] * parallel
        )
        features = [
            self._features(choice, call, segment, parallel, seen)
            for call, seen in zip(calls, looked, strict=True)
        ]
        mode = self.mode_for(call.name for call in calls)
        decisions: tuple[Decision, ...] = decide_turn(self.policy, mode, features)
        self.seconds += time.perf_counter() - started
        return tuple(
            CallRecord(
                call_id=call.call_id,
                index=call.index,
                name=call.name,
                arguments=call.arguments,
                features=seen,
                decision=decision,
            )
            for call, seen, decision in zip(calls, features, decisions, strict=True)
        )

    def _features(
        self,
        choice: Choice,
        call: ProposedCall,
        segment: SegmentStats | None,
        parallel_calls: int,
        looked: Seen | None = None,  # None: the arguments are not known yet
    ) -> Features:
        seen = looked or UNSEEN
        draft = self.drafts.get(choice.index)
        return Features(
            tool=call.name,
            segment=segment,
            capture_complete=choice.tokens.gap is None,
            tool_choice=self.tool_choice,
            repeats=seen.repeats,
            replayable=self.can_replay and seen.known is not None,
            calls_before=len(self.earlier),
            tool_calls_before=self.earlier.count(call.name),
            parallel_calls=parallel_calls,
            replays_in_turn=self.replays,
            draw=self.draws[choice.index],
            arguments_valid=looked is None or _is_object(call.arguments),
            forced=choice.tokens.gated is not None and choice.tokens.gated.action == "force",
            near_repeats=seen.near_repeats,
            result_age_seconds=seen.result_age_seconds,
            result_failed=seen.result_failed,
            failures=seen.failures,
            called_since=seen.called_since,
            circle_rounds=seen.circle_rounds,
            draft=None if draft is None else draft.stats(self._signal(call.name).draft_tokens),
            delta=self._delta(segment),
        )

    def _delta(self, segment: SegmentStats | None) -> float | None:
        """How the entropy has changed since the turn before, if that had calls."""
        parent = self.parent
        if segment is None or parent is None or not parent.has_calls:
            return None
        if parent.segment is None or not parent.capture_complete:
            return None
        return segment.mean.midpoint - parent.segment.mean.midpoint


def _unsampled(tool: str, call_id: str) -> ProposedCall:
    """Stands for a call of ``tool`` of which no token was sampled."""
    return ProposedCall(index=0, call_id=call_id, name=tool)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments or "{}"), dict)
    except orjson.JSONDecodeError:
        return False


def allowed_by_fault(decision: Decision) -> Decision:
    """``decision`` as it stands where its call went through against it."""
    return replace(decision, applied=Action.ALLOW, reason=Reason.GATE_FAULT, propensity=1.0)

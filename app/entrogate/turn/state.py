"""What is known of a turn while it runs.

A turn has one leg (one upstream chat request) unless a call is replayed: then the gateway plays the
client's round trip itself and the turn goes on with another leg.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from entrogate.errors import UpstreamProtocol
from entrogate.segments import starts_in_reasoning
from entrogate.turn.choice import Choice
from entrogate.turn.guard import Guard
from entrogate.turn.ids import ANSWER_PREFIX, mint_answer
from entrogate.turn.judge import Judge, allowed_by_fault
from entrogate.turn.link import Link
from entrogate.types import Action, CallRecord, Capture, TurnHead, TurnRecord
from entrogate.upstream.capabilities import Capabilities
from entrogate.wire.chunks import Usage
from entrogate.wire.request import ChatRequest

_SPARE_CHOICES = 7  # each is stored like an answer of its own


@dataclass(slots=True, kw_only=True)
class Leg:
    """One upstream chat request of a turn and what came of it."""

    request: ChatRequest
    parent: TurnHead | None
    name: str = field(default_factory=mint_answer)  # vLLM names its answer after it
    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)  # the same moment; no jump of the clock
    prompt_token_ids: list[int] = field(default_factory=list[int])
    upstream_id: str = ""  # what the model server called its answer
    created: int = 0
    model: str = ""
    choices: dict[int, Choice] = field(default_factory=dict[int, Choice])
    decided: dict[int, tuple[CallRecord, ...]] = field(
        default_factory=dict[int, tuple[CallRecord, ...]]
    )
    error: str | None = None
    usage: Usage | None = None  # as the server counted

    @property
    def response_id(self) -> str:
        """The id of the answer of this leg: minted, and so unique whatever the server calls it."""
        return ANSWER_PREFIX + self.name

    def check_usage(self) -> None:
        """Mark every choice when the tokens we saw are not those the server counted."""
        counted = None if self.usage is None else self.usage.completion_tokens
        seen = sum(len(choice.tokens.ids) for choice in self.choices.values())
        if counted == seen:
            return
        for choice in self.choices.values():
            choice.tokens.mark("usage_missing" if counted is None else "count_mismatch")


@dataclass(slots=True, kw_only=True)
class Turn:
    """A chat request, where it attaches, and its legs; the last one is running."""

    request: ChatRequest
    request_id: str  # for logs and traces: it may repeat
    capabilities: Capabilities
    link: Link
    judge: Judge
    guard: Guard
    call_text: str  # of the token that opens a call
    draw: Callable[[], float]
    debug: bool
    received: float  # time.perf_counter() when the request came in
    legs: list[Leg]
    weight_version: str | None  # of the lease; None where the client named unpublished weights
    heads: list[TurnHead] = field(default_factory=list[TurnHead])
    records: list[TurnRecord] = field(default_factory=list[TurnRecord])
    stored: list[tuple[Leg, TurnRecord]] = field(default_factory=list[tuple[Leg, TurnRecord]])
    retry_after: str = ""  # what a server that refused says of when to ask again
    client_left: bool = False
    recorded: bool = True  # False: nothing of it goes to the store
    key_id: str | None = None  # of the API key that asks

    @property
    def leg(self) -> Leg:
        """The leg under way: the latest request to the upstream."""
        return self.legs[-1]

    @property
    def response_id(self) -> str:
        """The id of the answer as the client has it."""
        return self.legs[0].response_id

    @property
    def first_leg(self) -> bool:
        """Whether nothing has been asked again yet."""
        return len(self.legs) == 1

    def choice(self, index: int) -> Choice:
        """The accumulator of choice ``index`` of the current leg.

        Raises UpstreamProtocol for many more than were asked for.
        """
        choice = self.leg.choices.get(index)
        if choice is None:
            if len(self.leg.choices) >= self.request.n + _SPARE_CHOICES:
                raise UpstreamProtocol(
                    f"the upstream sent many more choices than were asked for ({self.request.n})"
                )
            text = self.call_text if self.request.has_tools else None
            choice = Choice(index, self.capabilities, text, self.judge.now)
            if "logprob_token_ids" in self.request.body:
                choice.tokens.mark("logprob_token_ids")
            self.judge.draw_for(choice, self.draw())
            self.leg.choices[index] = choice
        return choice

    def set_prompt(self, prompt_token_ids: list[int]) -> None:
        """Take the ids of the current leg's prompt, as the server or the engine said them."""
        self.leg.prompt_token_ids = prompt_token_ids
        markers = self.judge.markers
        with self.guard.around("gate"):
            self.judge.starts_in_reasoning = starts_in_reasoning(
                prompt_token_ids, markers.think_open, markers.think_close
            )

    def decide(self, choice: Choice) -> None:
        """Decide on the calls of ``choice``, whole now. A fault lets them through."""
        decided: tuple[CallRecord, ...] | None = None
        with self.guard.around("gate"):
            gap = self.judge.gap(choice)
            if gap is not None:
                choice.tokens.mark(gap)
            decided = self.judge.decide(choice)
        if decided is None:
            choice.tokens.mark("gate_fault")
            decided = self.judge.decide_faulted(choice)
        self.leg.decided[choice.index] = decided

    def decide_early(self, choice: Choice) -> bool:
        """Suppress the calls of ``choice`` at the first sign of them, their arguments unseen?

        Not while the model could still go on to call a tool that must not be suppressed.
        """
        first = next(iter(choice.calls.calls), None)
        if first is None or not first.name or choice.tokens.call_position() is None:
            return False
        decided: tuple[CallRecord, ...] = ()
        with self.guard.around("gate"):
            if all(map(self.judge.gates, self.request.tool_names)):
                decided = self.judge.decide_early(choice)
        if decided:
            self.leg.decided[choice.index] = decided
        return bool(decided)

    def lacks_draft(self, choice: Choice) -> bool:
        """Is the decision on ``choice`` one that a draft could change, and that is carried out?"""
        records = self.leg.decided.get(choice.index, ())
        return self.judge.acts and any(map(self.judge.lacks_draft, records))

    def gated(self, choice: Choice) -> bool:
        """May every call that ``choice`` has named so far be held back?"""
        with self.guard.around("gate"):
            return all(self.judge.gates(call.name) for call in choice.calls.calls if call.name)
        return False

    def applied(self, choice: Choice) -> Action:
        """What is done with the calls of ``choice``: the gate decides them alike or allows all."""
        records = self.leg.decided.get(choice.index, ())
        return records[0].decision.applied if records else Action.ALLOW

    def fail_open(self, choice: Choice, what: str) -> None:
        """Let the calls of ``choice`` through although the policy said otherwise."""
        self.guard.failed_open(what)
        self.leg.decided[choice.index] = tuple(
            replace(record, decision=allowed_by_fault(record.decision))
            for record in self.leg.decided.get(choice.index, ())
        )

    def note_fault(self, what: str) -> None:
        """Why the answer broke off on its way to the client."""
        self.leg.error = self.leg.error or what

    def capture_of(self, choice: Choice) -> Capture:
        """The capture of ``choice``; without entropies, and marked, where they make no sense."""
        with self.guard.around("capture"):
            return choice.tokens.capture()
        choice.tokens.mark("capture_fault")
        return choice.tokens.unknown_capture()

    def spent(self) -> tuple[int, int]:
        """Prompt tokens of the first leg, and sampled tokens of the answer over all legs.

        Tokens that were sampled for a suppressed call and thrown away are not counted.
        """
        first = self.legs[0]
        prompt = len(first.prompt_token_ids)
        if not prompt and first.usage is not None:
            prompt = first.usage.prompt_tokens
        return prompt, sum(map(_sampled, self.legs))

    @property
    def changed(self) -> bool:
        """Is the answer another one than vLLM's first, so that its usage has to be added up?"""
        return len(self.legs) > 1 or any(
            choice.tokens.wasted for leg in self.legs for choice in leg.choices.values()
        )


def _sampled(leg: Leg) -> int:
    """Tokens of the answer of ``leg``, by the server's count where their ids are not known."""
    seen = sum(len(choice.tokens.ids) for choice in leg.choices.values())
    counted = None if leg.usage is None else leg.usage.completion_tokens
    return seen or counted or 0

"""The sampled tokens of one choice, as far as they were captured."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from entrogate.engine.frames import Gated
from entrogate.entropy.capture import CaptureBuilder
from entrogate.types import Capture, Estimator
from entrogate.upstream.capabilities import Capabilities
from entrogate.upstream.captures import ChoiceCapture
from entrogate.wire.alternatives import marks_of, probabilities
from entrogate.wire.chunks import ChatLogprobs, CompletionChoice, TokenLogprob

_NAN = math.nan
_UNKNOWN = TokenLogprob(logprob=_NAN)


class ChoiceTokens:
    """Grows with the answer; without ``call_text`` nobody looks for the tool-call token.

    ``gap`` says why the capture is incomplete, None if it is not; the first reason stands.
    """

    def __init__(self, capabilities: Capabilities, call_text: str | None) -> None:
        self.ids: list[int] = []
        self.gap: str | None = None if capabilities.capture else "capture_unavailable"
        self.altered: list[tuple[int, int]] = []
        self.wasted = 0  # sampled for a suppressed call
        self.drafted = 0  # sampled for a draft and not used
        self.resumes_at: int | None = None  # set when a call was suppressed
        self.exact: NDArray[np.void] | None = None  # of dtype `frames.TOKEN`: the engine's capture
        self.gated: Gated | None = None  # what the gate in the engine did, where that mattered most
        self._acts: list[Gated] = []  # all that it did
        self._top_k = capabilities.top_logprobs
        self._vocab_size = capabilities.vocab_size
        self._builder: CaptureBuilder | None = None
        self._pending: list[TokenLogprob] = []  # parallel to the last ids
        self._p_call: list[float] = []
        self._call_token_id = capabilities.tool_call_token_id
        self._call_at: int | None = None
        self._searched = 0  # so many ids hold no such token
        names = () if call_text is None else (call_text, f"token_id:{self._call_token_id}")
        self._call_marks = marks_of(names)

    def mark(self, gap: str) -> None:
        """Note why the capture is incomplete."""
        self.gap = self.gap or gap

    def add_chat(
        self, token_ids: list[int] | None, logprobs: ChatLogprobs | None, answer: bytes
    ) -> None:
        """Take the tokens of one chunk, or of a whole answer; ``answer`` is its JSON.

        On the path of every streamed token: what can wait is done in `capture`.
        """
        entries = (logprobs.content if logprobs is not None else None) or []
        if token_ids is None or len(token_ids) != len(entries):
            self._note_gap(token_ids, len(entries))
            entries = [_UNKNOWN] * len(token_ids or ())
        if not entries:
            return
        self.ids.extend(token_ids or ())
        self._pending.extend(entries)
        self._p_call += probabilities(answer, self._call_marks, len(entries))

    def add_completion(self, choice: CompletionChoice) -> None:
        """Take tokens that were decoded after the tool call was masked."""
        if self.exact is not None:
            return  # they come from the engine
        self._settle()
        logprobs, token_ids = choice.logprobs, choice.token_ids or []
        n_logprobs = 0 if logprobs is None else len(logprobs.token_logprobs)
        if logprobs is None or not (n_logprobs == len(token_ids) == len(logprobs.top_logprobs)):
            self._note_gap(token_ids, n_logprobs)
            for token_id in token_ids:
                self._building().add(token_id, _NAN, (), _NAN)
        else:
            for token_id, logprob, top in zip(
                token_ids, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
            ):
                p_call = (top or {}).get(f"token_id:{self._call_token_id}")
                self._building().add(
                    token_id,
                    _NAN if logprob is None else logprob,
                    list((top or {}).values()),
                    _NAN if p_call is None else math.exp(min(p_call, 0.0)),
                )
        if token_ids and self.resumes_at is not None and not self.altered:
            self.altered.append((len(self.ids), len(self.ids) + 1))
        self.ids.extend(token_ids)

    def begin_with(self, draft: ChoiceTokens) -> None:
        """Go on after a cut with the tokens of a draft."""
        self.gap = self.gap or draft.gap
        self.drafted -= len(draft.ids)
        if self.exact is None:
            return  # its tokens come with the text
        self.altered.append((len(self.exact), len(self.exact) + 1))
        if draft.exact is None:
            self.mark("capture_incomplete")
        else:
            self.exact = np.concatenate((self.exact, draft.exact))
        self.ids = self.exact["token_id"].tolist()
        self._call_at, self._searched = None, 0

    def take_captured(self, captured: ChoiceCapture, n_counted: int | None) -> None:
        """Take what the engine captured of this choice, or of its end after a suppressed call.

        ``n_counted`` is the server's own count where it is known; what the engine sampled beyond it
        (before a stop string was noticed) is left out.
        """
        tokens = captured.tokens()[:n_counted]
        if not captured.complete or (n_counted is not None and len(tokens) != n_counted):
            self.mark("capture_incomplete")
        known = bool(np.isfinite(tokens["entropy"]).all())
        if not known or any(gated.position > len(tokens) for gated in captured.gated):
            self.mark("capture_incomplete")  # not of this answer, or of logits that are no numbers
        start = 0 if self.exact is None else len(self.exact)
        if self.resumes_at == start:
            self.altered.append((start, start + 1))
        for gated in captured.gated:
            self.altered.append((start + gated.position, start + gated.position + 1))
        self._acts += captured.gated
        self.gated = _foremost(self._acts)
        self.exact = tokens if self.exact is None else np.concatenate((self.exact, tokens))
        self.ids = self.exact["token_id"].tolist()
        self._call_at, self._searched = None, 0

    def capture(self) -> Capture:
        """What the engine said of the tokens so far. Raises ValueError where that cannot be."""
        if self.exact is not None:
            return _exact_capture(self.exact)
        self._settle()
        return self._building().build()

    def unknown_capture(self) -> Capture:
        """The ids alone: what is recorded where `capture` fails."""
        ids = self.ids if self.exact is None else self.exact["token_id"]
        unknown = np.full(len(ids), np.nan, dtype=np.float32)
        return Capture(
            token_ids=np.asarray(ids, dtype=np.int32),
            logprobs=unknown,
            entropy_lower=unknown,
            entropy_upper=unknown,
            margin=unknown,
            tail_mass=unknown,
            p_tool_call=unknown,
            estimator=Estimator.TOPK if self.exact is None else Estimator.EXACT,
            top_k=self._top_k if self.exact is None else None,
        )

    @property
    def p_masked(self) -> float:
        """With which probability a call would have been sampled where the engine masked it.

        Of all places with the segment of `gated`: there every policy decides alike.
        """
        if self.gated is None:
            return 0.0
        alike = {
            act.position: _p_sampled(act)
            for act in self._acts
            if act.action == "suppress" and act.n_tokens == self.gated.n_tokens
        }
        return 1.0 - math.prod(1.0 - p for p in alike.values())

    def call_position(self) -> int | None:
        """Position of the token that opens the first call; None when it is not there."""
        if self._call_at is None and self._call_token_id is not None:
            try:
                self._call_at = self.ids.index(self._call_token_id, self._searched)
            except ValueError:
                self._searched = len(self.ids)
        return self._call_at

    def cut(self, position: int) -> None:
        """Drop the call that opens at ``position`` and everything after it."""
        self.wasted += len(self.ids) - position
        if self.exact is not None:
            self.exact = self.exact[:position]
        else:
            self._settle()
            self._building().truncate(position)
        del self.ids[position:]
        self._call_at, self._searched = None, position
        self.resumes_at = position

    def _building(self) -> CaptureBuilder:
        if self._builder is None:
            self._builder = CaptureBuilder(self._top_k, self._vocab_size)
        return self._builder

    def _settle(self) -> None:
        """Hand the tokens that have gathered to the builder."""
        pending = self._pending
        if not pending:
            return
        self._pending, p_call = [], self._p_call
        self._p_call = []
        self._building().add_many(
            self.ids[-len(pending) :],
            [entry.logprob for entry in pending],
            [top.logprob for entry in pending for top in entry.top_logprobs],
            [len(entry.top_logprobs) for entry in pending],
            p_call,
        )

    def _note_gap(self, token_ids: list[int] | None, n_logprobs: int) -> None:
        if token_ids is None:
            if n_logprobs:
                self.mark("token_ids_missing")
        elif n_logprobs == 0 and token_ids:
            self.mark("logprobs_missing")
        elif n_logprobs != len(token_ids):
            self.mark("count_mismatch")


def _foremost(acts: list[Gated]) -> Gated | None:
    """A forced call, else the masked one that was the most likely to be sampled."""
    forced = next((act for act in acts if act.action == "force"), None)
    return forced or max(acts, key=_p_sampled, default=None)


def _p_sampled(act: Gated) -> float:
    """Of the call that was masked; by the raw distribution where the engine did not say."""
    p_sampled = act.p_tool_call if math.isnan(act.p_sampled) else act.p_sampled
    return 0.0 if math.isnan(p_sampled) else min(max(p_sampled, 0.0), 1.0)


def _exact_capture(tokens: NDArray[np.void]) -> Capture:
    """The engine's tokens (dtype `frames.TOKEN`) as a capture: bounds that meet."""
    entropy = tokens["entropy"]
    return Capture(
        token_ids=tokens["token_id"],
        logprobs=tokens["logprob"],
        entropy_lower=entropy,
        entropy_upper=entropy,
        margin=tokens["margin"],
        tail_mass=np.zeros(len(tokens), dtype=np.float32),
        p_tool_call=tokens["p_tool_call"],
        estimator=Estimator.EXACT,
        top_k=None,
    )

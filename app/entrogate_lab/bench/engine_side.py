"""The engine side of the scripted upstream: what the plugin in vLLM would measure, gate and send.

The frames, the channel and the gate are the plugin's own; the entropies are exact, because the
distribution of every scripted token is known.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrogate.engine.arguments import Asked, read_arguments
from entrogate.engine.frames import REQUEST_ARGUMENT
from entrogate.engine.gate import GateNumbers, GateState
from entrogate.engine.sender import CaptureSender, Stream
from entrogate_lab.bench.script import Step, Token, Turn, Vocabulary

_ARGUMENT = re.compile(rb'"entrogate": ?"([^"\\]*)"')
_WHOLE = (None, "stall", "lost_token")  # after these faults the engine has sampled everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What is sent of one choice; ``measured`` has shape (3, tokens). ``gate`` acted at
    ``gated_at``."""

    prompt: Sequence[int]
    token_ids: list[int]
    logprobs: np.ndarray
    measured: np.ndarray
    gate: GateState | None = None
    gated_at: int = 0


@dataclass(slots=True, kw_only=True)
class Following:
    """The choices of one request that is being answered, and how many tokens of each were sent."""

    step: Step
    choices: Sequence[Captured]
    streams: list[Stream]
    began: float
    sent: list[int]


class EngineSide:
    """Sends to ``address``; without one to a socket in a private folder of its own."""

    def __init__(self, address: str | None = None, secret: str | None = None) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if address is None:
            self._folder = tempfile.TemporaryDirectory(prefix="entrogate-engine-")
            address = f"ipc://{Path(self._folder.name) / 'captures'}"
        self._sender = CaptureSender(address, secret)
        self.address = self._sender.address

    def close(self) -> None:
        """Let go of the address."""
        self._sender.close()
        if self._folder is not None:
            self._folder.cleanup()

    def begin(self, asked: Asked, choices: Sequence[Captured], step: Step) -> Following:
        """The answer to a request begins to be sent: all of it, unless its step says otherwise."""
        sender = self._sender
        streams = [
            sender.began(asked.gateway, asked.request, index, choice.prompt, resumed=0)
            for index, choice in enumerate(choices)
        ]
        following = Following(
            step=step,
            choices=choices,
            streams=streams,
            began=time.monotonic(),
            sent=[0] * len(streams),
        )
        if step.fault is None and not step.delay:
            self.end(following, whole=True)
        else:
            sender.flush()
        return following

    def end(self, following: Following, *, whole: bool) -> None:
        """The answer was sent, or is not sent any more. Safe to call twice."""
        step = following.step
        streams, following.streams = following.streams, []
        for stream, choice in zip(streams, following.choices, strict=False):
            n_tokens = len(choice.token_ids)
            if step.fault not in _WHOLE:
                n_tokens = min(n_tokens, step.at)
            elif not whole and step.delay:
                elapsed = time.monotonic() - following.began
                n_tokens = min(n_tokens, int(elapsed / step.delay))
            self._send(stream, choice, n_tokens)
        if streams:
            self._sender.flush()

    def _send(self, stream: Stream, choice: Captured, n_tokens: int) -> None:
        sender = self._sender
        if n_tokens:
            sender.tokens(
                [stream] * n_tokens,
                choice.token_ids[:n_tokens],
                choice.logprobs[:n_tokens],
                choice.measured[:, :n_tokens],
            )
        if choice.gate is not None and choice.gated_at < n_tokens:
            sender.gated(
                stream,
                choice.gate,
                position=choice.gated_at,
                action="suppress",
                p_tool_call=_CERTAIN_CALL,
            )
        sender.ended(stream, n_tokens)


_CERTAIN_CALL = 0.98  # the probability of every scripted call's first token


def split_request(path: str, raw: bytes) -> tuple[tuple[str, bytes], Asked | None]:
    """What answers are remembered by: a body without the name of its request, which is another
    each time; and that name, read. ValueError where it is malformed."""
    found = list(_ARGUMENT.finditer(raw))
    if not found:
        return (path, raw), None
    last = found[-1]
    asked = read_arguments({REQUEST_ARGUMENT: last[1].decode()})
    return (path, raw[: last.start()] + raw[last.end() :]), asked


def capture_turns(
    body: dict[str, Any],
    turns: Sequence[Turn],
    prompt: Sequence[int],
    vocabulary: Vocabulary,
    masked: Callable[[str, int], Turn],
) -> tuple[list[Turn], tuple[Captured, ...]]:
    """The choices of an answer as the gate lets them be sampled, and what is sent of them.

    ValueError on malformed arguments, as from the plugin. ``masked`` goes on after a text of so
    many tokens, with the call's token masked.
    """
    asked = read_arguments(body.get("vllm_xargs"), vocabulary.size)
    if asked is None:
        return list(turns), ()
    gated = [
        (turn, None, 0) if asked.gate is None else gated_turn(turn, asked.gate, prompt, masked)
        for turn in turns
    ]
    measured = [captured(turn, prompt, asked.call_id, gate, at) for turn, gate, at in gated]
    return [turn for turn, _, _ in gated], tuple(measured)


def gated_turn(
    turn: Turn, numbers: GateNumbers, prompt: Sequence[int], masked: Callable[[str, int], Turn]
) -> tuple[Turn, GateState | None, int]:
    """``turn`` as the gate lets it be sampled; the state and the place where it masked a call.

    ``masked`` goes on after a text of so many tokens, with the call's token masked.
    """
    state = GateState.begin(numbers, prompt)
    for position, token in enumerate(turn.tokens):
        entropy, margin, p_call = _measure(token, numbers.call_id)
        if token.token_id == numbers.call_id and state.suppresses(p_call):
            kept = turn.tokens[:position]
            rest = masked("".join(t.text for t in kept), position)
            return (
                Turn(
                    tokens=(*kept, *rest.tokens),
                    finish_reason=rest.finish_reason,
                    step=turn.step,
                ),
                state,
                position,
            )
        state.take(token.token_id, entropy, margin, token.logprob)
    return turn, None, 0


def captured(
    turn: Turn,
    prompt: Sequence[int],
    call_id: int | None,
    gate: GateState | None = None,
    gated_at: int = 0,
) -> Captured:
    """What the plugin measures of a scripted turn."""
    measured = np.array([_measure(token, call_id) for token in turn.tokens], dtype=np.float32)
    return Captured(
        prompt=prompt,
        token_ids=[token.token_id for token in turn.tokens],
        logprobs=np.array([token.logprob for token in turn.tokens], dtype=np.float32),
        measured=measured.reshape(-1, 3).T,
        gate=gate,
        gated_at=gated_at,
    )


def _measure(token: Token, call_id: int | None) -> tuple[float, float, float]:
    """Entropy, margin and the tool-call token's probability; ``top`` is all of the distribution."""
    logprobs = [logprob for _, _, logprob in token.top]
    best = sorted(logprobs, reverse=True)
    entropy = -math.fsum(logprob * math.exp(logprob) for logprob in logprobs)
    p_call = math.nan
    if call_id is not None:
        p_call = next((math.exp(lp) for i, _, lp in token.top if i == call_id), 0.0)
    return max(0.0, entropy), best[0] - best[1], p_call

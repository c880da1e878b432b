# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""Sends what was captured to the gateways, without ever making the decoder wait.

A ZeroMQ PUB socket: its own thread (no Python in it) does the sending, a gateway that is too slow
loses messages, and the gap in their sequence tells it so.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from entrogate.engine.frames import TOKEN, VERSION, Began, Ended, Gated, Message, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrogate.engine.gate import GateState

_log = logging.getLogger("entrogate.engine")
FLUSH_SECONDS = 0.1
FLUSH_STEPS = 64
QUEUED_MESSAGES = 10_000


@dataclass(slots=True)
class _Outgoing:
    """What waits for one gateway."""

    sequence: int = 0
    began: list[Began] = field(default_factory=list[Began])
    tokens: list[np.ndarray] = field(default_factory=list[np.ndarray])
    gated: list[Gated] = field(default_factory=list[Gated])
    ended: list[Ended] = field(default_factory=list[Ended])

    @property
    def empty(self) -> bool:
        return not (self.began or self.tokens or self.gated or self.ended)


@dataclass(frozen=True, slots=True)
class Stream:
    """One choice under capture: the gateway that follows it, and its number there."""

    gateway: str
    number: int


class Silence:
    """Stands in for the publisher on the ranks that gate but do not send."""

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        """A choice enters the batch; after a preemption it has ``resumed`` tokens already."""
        del request, choice, prompt, resumed
        return Stream(gateway, 0)

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        """One token each of n streams; ``measured``, (3, n): entropy, margin, p(tool call)."""

    def gated(
        self, stream: Stream, gate: GateState, *, position: int, action: str, p_tool_call: float
    ) -> None:
        """``gate`` acted before the token at ``position``."""

    def ended(self, stream: Stream, n_tokens: int) -> None:
        """A choice left the batch with so many tokens (-1: not known)."""

    def step(self) -> None:
        """A decoding step is over: send what is due."""


class Publisher(Silence):
    """Collects by gateway and sends now and then. Raises zmq.ZMQError when it cannot bind."""

    def __init__(self, address: str) -> None:
        self._socket: Any = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 200)
        try:
            self._socket.bind(address)
        except zmq.ZMQError:
            self._socket.close()
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._worker = int.from_bytes(os.urandom(7), "little")
        self._outgoing: dict[str, _Outgoing] = {}
        self._sent_at = time.monotonic()
        self._steps = 0
        self._due = False
        self._streams = 0

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        self._streams += 1
        self._of(gateway).began.append(
            Began(
                stream=self._streams,
                request=request,
                choice=choice,
                prompt_token_ids=np.array(prompt, dtype="<i4").tobytes(),
                resumed=resumed,
            )
        )
        return Stream(gateway, self._streams)

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        tokens = np.empty(len(streams), dtype=TOKEN)
        tokens["stream"] = [stream.number for stream in streams]
        tokens["token_id"], tokens["logprob"] = token_ids, logprobs
        tokens["entropy"], tokens["margin"], tokens["p_tool_call"] = measured
        gateways = [stream.gateway for stream in streams]
        among = set(gateways)
        for gateway in among:
            mine = [name == gateway for name in gateways]
            self._of(gateway).tokens.append(tokens if len(among) == 1 else tokens[mine])

    def gated(
        self, stream: Stream, gate: GateState, *, position: int, action: str, p_tool_call: float
    ) -> None:
        self._of(stream.gateway).gated.append(
            Gated(
                stream=stream.number,
                position=position,
                action=action,
                value=gate.value(),
                n_tokens=gate.n_tokens,
                p_tool_call=p_tool_call,
            )
        )

    def ended(self, stream: Stream, n_tokens: int) -> None:
        self._of(stream.gateway).ended.append(Ended(stream=stream.number, n_tokens=n_tokens))
        self._due = True

    def step(self) -> None:
        self._steps += 1
        if (
            self._due  # a gateway waits for the end of an answer
            or self._steps >= FLUSH_STEPS
            or time.monotonic() - self._sent_at > FLUSH_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Send what waits. Never blocks."""
        self._due, self._steps, self._sent_at = False, 0, time.monotonic()
        for gateway, waiting in self._outgoing.items():
            if waiting.empty:
                continue
            tokens = waiting.tokens
            message = Message(
                version=VERSION,
                worker=self._worker,
                sequence=waiting.sequence,
                began=waiting.began,
                tokens=np.concatenate(tokens).tobytes() if tokens else b"",
                gated=waiting.gated,
                ended=waiting.ended,
            )
            self._outgoing[gateway] = _Outgoing(sequence=waiting.sequence + 1)
            try:
                self._socket.send_multipart([gateway.encode(), encode(message)], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                _log.warning("entrogate: captures not sent: %s", error)

    def close(self) -> None:
        self.flush()
        self._socket.close()

    def _of(self, gateway: str) -> _Outgoing:
        return self._outgoing.setdefault(gateway, _Outgoing())

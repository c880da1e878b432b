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
from typing import Any

import numpy as np
import zmq

from entrogate.engine.frames import TOKEN, VERSION, Began, Ended, Gated, Message, encode

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


class Silence:
    """Stands in for the publisher on the ranks that gate but do not send."""

    def began(self, gateway: str, event: Began) -> None: ...

    def gated(self, gateway: str, event: Gated) -> None: ...

    def ended(self, gateway: str, event: Ended) -> None: ...

    def tokens(self, gateway: str, tokens: np.ndarray) -> None: ...

    def step(self, *, now: bool) -> None: ...


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

    def began(self, gateway: str, event: Began) -> None:
        self._of(gateway).began.append(event)

    def gated(self, gateway: str, event: Gated) -> None:
        self._of(gateway).gated.append(event)

    def ended(self, gateway: str, event: Ended) -> None:
        self._of(gateway).ended.append(event)

    def tokens(self, gateway: str, tokens: np.ndarray) -> None:
        """``tokens`` has dtype `frames.TOKEN` and is not written to afterwards."""
        self._of(gateway).tokens.append(tokens)

    def step(self, *, now: bool) -> None:
        """A decoding step is over: send if it is time, or ``now``."""
        self._steps += 1
        if now or self._steps >= FLUSH_STEPS or time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits. Never blocks."""
        self._steps, self._sent_at = 0, time.monotonic()
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


def packed(
    streams: list[int], token_ids: list[int], logprobs: np.ndarray, measured: np.ndarray
) -> np.ndarray:
    """Tokens of one step in the form that is sent; ``measured`` has shape (3, n)."""
    tokens = np.empty(len(streams), dtype=TOKEN)
    tokens["stream"], tokens["token_id"], tokens["logprob"] = streams, token_ids, logprobs
    tokens["entropy"], tokens["margin"], tokens["p_tool_call"] = measured
    return tokens

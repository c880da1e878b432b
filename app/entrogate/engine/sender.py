# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
"""Sends what was captured to the gateways, without ever making the decoder wait.

A ZeroMQ PUB socket: its own thread (no Python in it) does the sending, a gateway that is too slow
loses messages, and the gap in their sequence tells it so.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import zmq

from entrogate.engine.channel import check_address, protect, take_socket_file
from entrogate.engine.frames import TOKEN, VERSION, Began, Ended, Gated, Message, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrogate.engine.gate import GateState

_log = logging.getLogger("entrogate.engine")
FLUSH_SECONDS = 0.1
FLUSH_STEPS = 64
QUEUED_MESSAGES = 2_000
EXPIRE_SECONDS = 300.0
MAX_GATEWAYS = 256  # names under way or used lately: a request can make one up
WAITING_BYTES = 2**22  # of one gateway, then they are sent: a message is little more
_STREAMS = 2**32  # numbers of streams, as frames count them


@dataclass(slots=True)
class _Outgoing:
    """What waits for one gateway. ``open``: its choices under way; ``n_bytes`` roughly."""

    sequence: int = 0
    open: int = 0
    n_bytes: int = 0
    named_at: float = 0.0
    began: list[Began] = field(default_factory=list[Began])
    tokens: list[np.ndarray] = field(default_factory=list[np.ndarray])
    gated: list[Gated] = field(default_factory=list[Gated])
    ended: list[Ended] = field(default_factory=list[Ended])

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not (self.began or self.tokens or self.gated or self.ended)

    def take(self, worker: int) -> Message:
        """All that waits, as the next message."""
        message = Message(
            version=VERSION,
            worker=worker,
            sequence=self.sequence,
            began=self.began,
            tokens=np.concatenate(self.tokens).tobytes() if self.tokens else b"",
            gated=self.gated,
            ended=self.ended,
        )
        self.sequence += 1
        self.n_bytes = 0
        self.began, self.tokens, self.gated, self.ended = [], [], [], []
        return message


@dataclass(frozen=True, slots=True)
class Stream:
    """One choice under capture: the gateway that follows it, and its number there (0: none)."""

    gateway: str
    number: int


class Sender(Protocol):
    """Where a model runner reports what happens to the choices under capture."""

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        """A choice enters the batch; after a preemption it has ``resumed`` tokens already."""
        ...

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        """One token each of n streams; ``measured``, (3, n): entropy, margin, p(tool call)."""

    def gated(
        self,
        stream: Stream,
        gate: GateState,
        *,
        position: int,
        action: str,
        p_tool_call: float,
        p_sampled: float = math.nan,
    ) -> None:
        """``gate`` acted before the token at ``position``; the numbers are those of `Gated`."""

    def ended(self, stream: Stream, n_tokens: int) -> None:
        """A choice left the batch with so many tokens (-1: not known)."""

    def step(self) -> None:
        """A decoding step is over: send what is due."""


class MutedSender(Sender):
    """For the ranks that gate but do not send: every report is dropped."""

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        """A stream without a number: whatever is reported of it is dropped."""
        del request, choice, prompt, resumed
        return Stream(gateway, 0)


class CaptureSender(Sender):
    """Collects reports by gateway and sends them in batches.

    Raises zmq.ZMQError when it cannot bind, ChannelRefused when it may not (see `channel`).

    How much it holds is bounded whatever gateways the requests name: so many names, each with so
    many bytes; past that a choice is not captured, or a message is lost.
    """

    def __init__(self, address: str, secret: str | None = None) -> None:
        self._socket: Any = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._lock: IO[bytes] | None = None
        try:
            check_address(address, secret)
            protect(self._socket, secret, binds=True)
            self._lock = take_socket_file(address)
            self._socket.bind(address)
            if self._lock is not None:
                Path(address.removeprefix("ipc://")).chmod(0o600)
        except (zmq.ZMQError, ValueError):
            self._close()
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.uncaptured = 0  # choices of gateways for which there was no room
        self._worker = int.from_bytes(os.urandom(7), "little")
        self._outgoing: dict[str, _Outgoing] = {}  # by name; the least recently begun first
        self._sent_at = self._expired_at = time.monotonic()
        self._steps = 0
        self._due = False
        self._streams = 0

    def began(
        self, gateway: str, request: str, choice: int, prompt: Sequence[int], *, resumed: int
    ) -> Stream:
        """Number a new stream; 0, so not captured, where there is no room for its gateway."""
        outgoing = self._admit(gateway)
        if outgoing is None:
            return Stream(gateway, 0)
        self._streams = self._streams % (_STREAMS - 1) + 1
        packed = np.array(prompt, dtype="<i4").tobytes()
        outgoing.open += 1
        outgoing.began.append(
            Began(
                stream=self._streams,
                request=request,
                choice=choice,
                prompt_token_ids=packed,
                resumed=resumed,
            )
        )
        self._grow(gateway, outgoing, len(packed))
        return Stream(gateway, self._streams)

    def tokens(
        self,
        streams: Sequence[Stream],
        token_ids: Sequence[int],
        logprobs: np.ndarray,
        measured: np.ndarray,
    ) -> None:
        """Sort the tokens by gateway; a gateway with too many bytes waiting is sent to at once."""
        tokens = np.empty(len(streams), dtype=TOKEN)
        tokens["stream"] = [stream.number for stream in streams]
        tokens["token_id"], tokens["logprob"] = token_ids, logprobs
        tokens["entropy"], tokens["margin"], tokens["p_tool_call"] = measured
        gateways = [stream.gateway if stream.number else "" for stream in streams]
        among = set(gateways)
        for gateway in among:
            outgoing = self._outgoing.get(gateway)
            if outgoing is None:
                continue
            mine = tokens if len(among) == 1 else tokens[[name == gateway for name in gateways]]
            outgoing.tokens.append(mine)
            self._grow(gateway, outgoing, mine.nbytes)

    def gated(
        self,
        stream: Stream,
        gate: GateState,
        *,
        position: int,
        action: str,
        p_tool_call: float,
        p_sampled: float = math.nan,
    ) -> None:
        """Keep what the gate saw and did, for the stream's gateway."""
        outgoing = self._of(stream)
        if outgoing is None:
            return
        outgoing.gated.append(
            Gated(
                stream=stream.number,
                position=position,
                action=action,
                value=gate.value(p_tool_call),
                n_tokens=gate.n_tokens,
                p_tool_call=p_tool_call,
                p_sampled=p_sampled,
            )
        )

    def ended(self, stream: Stream, n_tokens: int) -> None:
        """Free the stream's place; its gateway is sent to at the end of this step."""
        outgoing = self._of(stream)
        if outgoing is None:
            return
        outgoing.open = max(0, outgoing.open - 1)
        outgoing.ended.append(Ended(stream=stream.number, n_tokens=n_tokens))
        self._due = True

    def step(self) -> None:
        """Send if an answer has ended, or after ``FLUSH_STEPS`` steps or ``FLUSH_SECONDS``."""
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
        for gateway, outgoing in self._outgoing.items():
            if not outgoing.empty:
                self._send(gateway, outgoing)
        if self._sent_at - self._expired_at > EXPIRE_SECONDS:
            self._expire()

    def lose(self) -> None:
        """Drop all that waits; its gateways see that the numbers of the messages begin anew."""
        self._outgoing.clear()

    def close(self) -> None:
        """Send what waits and let go of the address."""
        self.flush()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        if self._lock is not None:
            self._lock.close()

    def _send(self, gateway: str, outgoing: _Outgoing) -> None:
        payload = encode(outgoing.take(self._worker))
        try:
            self._socket.send_multipart([gateway.encode(), payload], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.warning("entrogate: captures not sent: %s", error)

    def _admit(self, gateway: str) -> _Outgoing | None:
        """A place for a gateway that a request names; the one least recently named makes room."""
        outgoing = self._outgoing.pop(gateway, None)
        if outgoing is None:
            if len(self._outgoing) >= MAX_GATEWAYS:
                idle = next((n for n, o in self._outgoing.items() if not o.open and o.empty), None)
                if idle is None:
                    self.uncaptured += 1
                    return None
                del self._outgoing[idle]
            outgoing = _Outgoing()
        self._outgoing[gateway] = outgoing
        outgoing.named_at = self._sent_at
        return outgoing

    def _expire(self) -> None:
        """Forget the gateways that nobody has named for a while."""
        before, self._expired_at = self._expired_at, self._sent_at
        self._outgoing = {
            name: outgoing
            for name, outgoing in self._outgoing.items()
            if outgoing.open or outgoing.named_at > before
        }

    def _of(self, stream: Stream) -> _Outgoing | None:
        return self._outgoing.get(stream.gateway) if stream.number else None

    def _grow(self, gateway: str, outgoing: _Outgoing, n_bytes: int) -> None:
        outgoing.n_bytes += n_bytes
        if outgoing.n_bytes > WAITING_BYTES:
            self._send(gateway, outgoing)

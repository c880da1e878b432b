# pyright: reportUnknownMemberType=false
"""Receives what the engine captured, out of band, and puts it together by request.

The engine sends over ZeroMQ while it decodes (`entrogate.engine.frames`). A request is followed
from before it is sent until its answer is complete; what was lost on the way leaves its capture
incomplete, never wrong: tokens are counted, and messages have numbers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import msgspec
import numpy as np
import zmq

from entrogate.engine.channel import check_address, protect
from entrogate.engine.frames import TOKEN, Gated, Message, check, decode
from entrogate.errors import ConfigError

_log = logging.getLogger("entrogate.upstream")
WAIT_SECONDS = 2.0
_QUEUED_MESSAGES = 10_000
_LARGEST_MESSAGE = 2**26  # bytes; an engine sends some 4 MiB and the prompt of one request
_BATCH = 256  # messages at a time
_WORKERS = 256
_CHOICES = 1024  # of one request


@dataclass(slots=True)
class ChoiceCapture:
    """What has arrived of one choice; ``parts`` are records of dtype `frames.TOKEN`."""

    prompt_token_ids: bytes = b""
    parts: list[bytes] = field(default_factory=list[bytes])
    n_tokens: int = 0
    n_ended: int = -1  # tokens when it last left the batch, as the engine counted
    n_streams: int = 0  # under way: one, or for a moment two when it was preempted
    gated: list[Gated] = field(default_factory=list[Gated])
    broken: bool = False

    def tokens(self) -> np.ndarray:
        """What has arrived, one record of dtype `frames.TOKEN` a token, in order."""
        return np.frombuffer(b"".join(self.parts), dtype=TOKEN)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come: the engine reported the end, or a message was lost."""
        return self.broken or (self.n_streams == 0 and self.n_ended >= 0)

    @property
    def complete(self) -> bool:
        """Whether all tokens arrived, as many as the engine says there were."""
        return self.ended and not self.broken and self.n_ended == self.n_tokens


class RequestCapture:
    """The choices of one request, as they arrive."""

    def __init__(self, key: str, channel: CaptureChannel, *, probing: bool = False) -> None:
        self.key = key
        self._probing = probing
        self._channel = channel
        self.choices: dict[int, ChoiceCapture] = {}
        self._arrived = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is collected. Safe to call twice."""
        self._channel.forget(self)

    def touch(self) -> None:
        """Wake whoever waits for this request: something of it has arrived or was lost."""
        self._arrived.set()

    async def complete(self, n: int, timeout_seconds: float = WAIT_SECONDS) -> bool:
        """Wait until ``n`` choices have ended; False when that takes too long."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._ended(n):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            if not self.choices and not self._probing:
                self._channel.on_doubt("no capture arrives")
            return False
        return True

    def _ended(self, n: int) -> bool:
        return len(self.choices) >= n and all(choice.ended for choice in self.choices.values())


class CaptureChannel:
    """The gateway's end: one subscription under the gateway's own name.

    ``address`` is where the engine sends; of data-parallel replicas all, with commas between.
    ``secret`` is needed for an address that others can reach (`engine.channel`). ``on_malformed``
    is called for every message that is not what an engine sends: it is counted and left out.

    Raises ConfigError where others could listen or speak at an address.
    """

    def __init__(
        self,
        address: str,
        secret: str | None = None,
        *,
        on_malformed: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self._addresses = [part.strip() for part in address.split(",")]
        try:
            for part in self._addresses:
                check_address(part, secret)
        except ValueError as error:
            raise ConfigError(f"the capture channel: {error}") from error
        self.gateway = os.urandom(8).hex()
        self.malformed = 0
        self.on_doubt: Callable[[str], None] = lambda _: None  # is this still the same engine?
        self._secret = secret
        self._on_malformed = on_malformed
        self._requests: dict[str, RequestCapture] = {}
        # Streams are numbered by the worker that sends them.
        self._streams: dict[tuple[int, int], tuple[RequestCapture, ChoiceCapture]] = {}
        self._next: dict[int, int] = {}
        self._count = 0
        self._socket: Any = None

    async def __aenter__(self) -> Self:
        context = cast("Any", zmq.Context).instance()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST_MESSAGE)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt_string(zmq.SUBSCRIBE, self.gateway)
        try:
            protect(socket, self._secret, binds=False)
            for address in self._addresses:
                socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise ConfigError(f"the capture channel: {error}") from error
        self._socket = socket
        # zmq.asyncio costs a task and three futures a message.
        asyncio.get_running_loop().add_reader(socket.getsockopt(zmq.FD), self._receive)
        self._receive()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.getsockopt(zmq.FD))
            self._socket.close()
            self._socket = None

    def follow(self, *, probing: bool = False) -> RequestCapture:
        """Begin to collect a new request; `RequestCapture.close` ends it, as does a with block.

        ``probing``: it is not known whether anything will come.
        """
        self._count += 1
        request = RequestCapture(f"{self._count:x}", self, probing=probing)
        self._requests[request.key] = request
        return request

    def forget(self, request: RequestCapture) -> None:
        """Drop a request and its streams; messages of it that come later are ignored."""
        self._requests.pop(request.key, None)
        gone = [s for s, (followed, _) in self._streams.items() if followed is request]
        for stream in gone:
            del self._streams[stream]

    def argument(self, request: RequestCapture, tool_call_id: int | None) -> str:
        """What names the request to the engine."""
        return f"{self.gateway}/{request.key}/{-1 if tool_call_id is None else tool_call_id}"

    def _receive(self) -> None:
        """Take the messages that have come: ZeroMQ's descriptor tells of a change only once.

        Other work gets its turn between the batches of a flood.
        """
        if self._socket is None:
            return
        for _ in range(_BATCH):
            try:
                if not self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    return
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError as error:
                _log.error("capture.socket %s", error)
                return
            self._take_frames(frames)
        asyncio.get_running_loop().call_soon(self._receive)

    def _take_frames(self, frames: Sequence[bytes]) -> None:
        """Take one message; what is not one of ours is counted, and nothing of it is taken."""
        try:
            if len(frames) != 2 or frames[0] != self.gateway.encode():
                raise ValueError(f"{len(frames)} frames; want this gateway's name and a message")
            message = decode(frames[1])
            check(message)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self.malformed += 1
            self._on_malformed()
            if self.malformed & (self.malformed - 1) == 0:
                _log.warning("capture.malformed messages=%d the last: %s", self.malformed, error)
            return
        if self._next and message.worker not in self._next:
            self.on_doubt("another engine sends captures")
        self._take(message)

    def _take(self, message: Message) -> None:
        worker = message.worker
        if message.sequence != self._next.get(worker, message.sequence):
            self._lost(worker)
        self._next.pop(worker, None)
        self._next[worker] = message.sequence + 1
        if len(self._next) > _WORKERS:  # each start of vLLM is a new one
            del self._next[next(iter(self._next))]
        touched: set[RequestCapture] = set()
        for began in message.began:
            request = self._requests.get(began.request)
            if request is None:
                continue
            if began.choice not in request.choices and len(request.choices) >= _CHOICES:
                continue
            choice = request.choices.setdefault(began.choice, ChoiceCapture())
            choice.prompt_token_ids = began.prompt_token_ids or choice.prompt_token_ids
            choice.n_streams += 1
            self._streams[worker, began.stream] = (request, choice)
            touched.add(request)
        if message.tokens:
            self._take_tokens(worker, np.frombuffer(message.tokens, dtype=TOKEN))
        for gated in message.gated:
            if (worker, gated.stream) in self._streams:
                self._streams[worker, gated.stream][1].gated.append(gated)
        for ended in message.ended:
            request_choice = self._streams.pop((worker, ended.stream), None)
            if request_choice is not None:
                request, choice = request_choice
                choice.n_streams -= 1
                choice.n_ended = ended.n_tokens  # counts what came before a preemption, too
                choice.broken = choice.broken or ended.n_tokens < 0
                touched.add(request)
        for request in touched:
            request.touch()

    def _take_tokens(self, worker: int, tokens: np.ndarray) -> None:
        order = np.argsort(tokens["stream"], kind="stable")
        tokens = tokens[order]
        streams = tokens["stream"]
        starts = [0, *(np.flatnonzero(streams[1:] != streams[:-1]) + 1).tolist()]
        packed = tokens.tobytes()
        size = TOKEN.itemsize
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            request_choice = self._streams.get((worker, int(streams[start])))
            if request_choice is not None:
                request_choice[1].parts.append(packed[start * size : end * size])
                request_choice[1].n_tokens += end - start

    def _lost(self, worker: int) -> None:
        """Messages are missing: what is under way there cannot be whole any more."""
        _log.warning("capture.lost messages of the engine are missing")
        for (sender, _), (request, choice) in self._streams.items():
            if sender == worker:
                choice.broken = True
                request.touch()

"""Takes the stream of one leg apart, event by event, and decides which events wait.

The hot path is `LegReader.take`: decode what we need of an event, cut out what the client did not
ask for, pass it on as bytes.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from enum import Enum, auto

import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol
from entrogate.turn.choice import Choice
from entrogate.turn.events import (
    ToldCalls,
    is_compact,
    one_by_one,
    payload_of,
    read_uniform,
    renumbered,
    said_error,
    without_finish,
)
from entrogate.turn.state import Turn
from entrogate.wire.chunks import Chunk, ChunkChoice
from entrogate.wire.errors import error_event
from entrogate.wire.sse import event_data, json_event
from entrogate.wire.strip import strip_event

_SLICE = 256  # events that are read at a time, once all of them have been passed on


class Way(Enum):
    """What becomes of the events of one choice."""

    OPEN = auto()  # they leave as they come; its calls, once there are any, may have to wait
    HELD = auto()  # its calls wait for the decision
    FREE = auto()  # nothing of it waits: it is not gated, or its calls went through


@dataclass(slots=True, kw_only=True)
class Lane:
    """The events of one choice on their way to the client."""

    way: Way
    told: ToldCalls = field(default_factory=ToldCalls)
    held: list[bytes] = field(default_factory=list[bytes])
    finish: bytes = b""  # its last event, which waits for the decision and the commit
    finished: bool = False  # its last event has come; some servers send two
    looked: bool = False  # at its first call, for an early cut

    def release(self) -> bytes:
        """The held events, in order; the lane holds nothing afterwards."""
        released = b"".join(self.held)
        self.held.clear()
        return released


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The id and the time under which the client knows the answer."""

    response_id: str
    created: int

    def on(self, data: bytes) -> bytes:
        """The event ``data`` (``data: …`` with its blank line) with this id and time."""
        payload = payload_of(data)
        payload["id"], payload["created"] = self.response_id, self.created
        return json_event(payload)


class LegReader:
    """Of one leg. ``stamp`` is what its events are to carry, None where they carry it already.

    ``calls_only``: the client has the text of this leg from an attempt before it.
    """

    def __init__(self, turn: Turn, stamp: Stamp | None, *, calls_only: bool) -> None:
        self.turn = turn
        self.stamp = stamp
        self.ended = False
        self.failed = False  # the server reported an error in the stream
        self.cut: Choice | None = None  # its call is suppressed: the rest need not be read
        self.fault: EntrogateError | None = None  # of the server: nothing after it is taken
        self.usage_event = b""
        self.lanes: dict[int, Lane] = {}
        self._later = stamp is not None
        self._calls_only = calls_only
        gated = turn.judge.acts and turn.request.has_tools and not calls_only
        self._way = Way.OPEN if gated else Way.FREE
        self._wanted = turn.request.wanted
        self._engine = turn.capabilities.engine
        # An answer that is longer than the model's context has no end.
        self._longest = turn.capabilities.max_model_len or sys.maxsize
        self._passing = False  # may whole events of text go by unread?
        self.backlog_bytes = 0  # of what went by unread
        self._passed: list[bytes] = []

    def passes(self, data: bytes) -> bool:
        """May these bytes go to the client as they are? Their text is read when there is time.

        Yes for whole events of text where the engine captures, so that nothing was added to them
        that the client did not ask for. Inside a JSON string every quote is escaped: what is looked
        for can only be a field.
        """
        if (
            not self._passing
            or data[-2:] != b"\n\n"
            or b'"finish_reason":"' in data
            or b'"tool_calls":[{' in data
            or b'"choices":[]' in data
            or b'"error":' in data
            or b"[DONE]" in data
        ):
            return False
        self._passed.append(data)
        self.backlog_bytes += len(data)
        return True

    def catch_up(self) -> None:
        """Read the text of the events that went by."""
        for event in self._take_passed():
            self._read_passed(event)

    async def catch_up_in_slices(self) -> None:
        """`catch_up` without holding up the event loop, however long the answer was."""
        for number, event in enumerate(self._take_passed(), start=1):
            self._read_passed(event)
            if number % _SLICE == 0:
                await asyncio.sleep(0)

    def _take_passed(self) -> list[bytes]:
        passed, self._passed = self._passed, []
        self.backlog_bytes = 0
        return b"".join(passed).split(b"\n\n")

    @property
    def may_end(self) -> bool:
        """May the stream end here? Some servers say no ``[DONE]`` after the last finish reason."""
        needed = max(self.turn.request.n, len(self.lanes))
        return self.ended or self.failed or self._n_finished >= needed

    @property
    def _n_finished(self) -> int:
        return sum(lane.finished for lane in self.lanes.values())

    def take_all(self, events: list[bytes]) -> bytes:
        """What the client gets of ``events`` now, which a fault among them ends: it is kept."""
        out: list[bytes] = []
        try:
            if self._passed:
                self.catch_up()
            for event in events:
                out.append(self.take(event))
                if self.cut is not None or self.ended:
                    break
        except EntrogateError as error:
            self.fault = error  # what came before it is recorded, so it is told as well
        return out[0] if len(out) == 1 else b"".join(out)

    def take(self, event: bytes) -> bytes:
        """What the client gets of one event now; nothing for one that waits or is ours."""
        data = event[6:-2] if event.startswith(b"data: {") else event_data(event)
        if data is None:
            return event
        if data == b"[DONE]":
            self.ended = True
            return b""
        said, (data, chunk) = data, read_uniform(data)
        if chunk.error is not None:
            return self._failed(data, chunk)
        if data is not said or not event.startswith(b"data: {"):
            event = json_event(payload_of(data))  # comments and other fields beside the data
        if not is_compact(data):
            return self._take_uniform(data)
        if chunk.usage is not None:
            self.turn.leg.usage = chunk.usage  # many servers say it in the last event of a choice
        if not chunk.choices:
            self._take_usage(chunk, data)
            return b""
        if not self.turn.leg.upstream_id:
            self._begin(chunk)
        if len(chunk.choices) > 1:
            return b"".join([self.take(json_event(c)) for c in one_by_one(payload_of(data))])
        return self._take_choice(chunk.choices[0], event, data)

    def lane(self, choice: Choice) -> Lane:
        """The way of the events of ``choice``."""
        lane = self.lanes.get(choice.index)
        if lane is None:
            lane = self.lanes[choice.index] = Lane(way=self._way)
        return lane

    def _begin(self, chunk: Chunk) -> None:
        leg = self.turn.leg
        leg.upstream_id, leg.created, leg.model = chunk.id, chunk.created, chunk.model
        if self.stamp is None and chunk.id != leg.response_id:
            self.stamp = Stamp(response_id=leg.response_id, created=chunk.created)
        if chunk.prompt_token_ids is not None:
            self.turn.set_prompt(chunk.prompt_token_ids)
        self._passing = (
            self._engine and self.stamp is None and self._wanted.reasoning and bool(chunk.id)
        )

    def _take_uniform(self, data: bytes) -> bytes:
        """An event of a server that writes JSON another way: written as vLLM does, then taken."""
        payload = payload_of(data)
        error = said_error(payload)
        if error is not None:
            return self.take(json_event({"error": error}))
        if not isinstance(payload.get("choices"), list):
            payload["choices"] = []
        event = json_event(payload)
        if not is_compact(event):
            raise UpstreamProtocol("the upstream sent an event that is no chunk")
        return self.take(event)

    def _failed(self, data: bytes, chunk: Chunk) -> bytes:
        """The server reports an error in its stream: as it is, or in the API's envelope."""
        error, out = chunk.error, b""
        if chunk.choices:  # what it says beside the error comes first
            payload = payload_of(data)
            del payload["error"]
            out, data = self.take(json_event(payload)), orjson.dumps({"error": error})
        self.failed = True
        self.turn.leg.error = "the upstream reported an error in its stream"
        if isinstance(error, dict):
            return out + b"data: " + data + b"\n\n"
        said = error if isinstance(error, str) else orjson.dumps(error).decode()
        return out + error_event(UpstreamProtocol(f"the model server failed: {said[:300]}"))

    def _take_usage(self, chunk: Chunk, data: bytes) -> None:
        if chunk.usage is None:
            return
        self.turn.leg.usage = chunk.usage
        self.usage_event = b"data: " + data + b"\n\n" if self.stamp is None else self.stamp.on(data)

    def _take_choice(self, part: ChunkChoice, event: bytes, data: bytes) -> bytes:
        delta, finish = part.delta, part.finish_reason
        choice = self.turn.leg.choices.get(part.index) or self.turn.choice(part.index)
        if self._calls_only:
            delta.content = delta.reasoning = delta.reasoning_content = None
        empty = delta.empty
        self._observe(choice, part, data, empty=empty)
        if empty and finish is None and not self._wanted.metadata and not self._engine:
            return b""  # exists only because we asked for ids and log-probs
        if not self._wanted.reasoning and finish is None and delta.thought is not None:
            if delta.content is None and not delta.tool_calls:
                return b""
            payload = payload_of(data)
            for name in ("reasoning", "reasoning_content"):
                payload["choices"][0]["delta"].pop(name, None)
            event = json_event(payload)
        out = event if self._engine else strip_event(event, self._wanted)
        told = self._calls_only or (self._later and delta.role is not None)
        if told and finish is None and not delta.tool_calls:
            return b""
        return self._pass_on(choice, part, out, empty=empty)

    def _observe(self, choice: Choice, part: ChunkChoice, data: bytes, *, empty: bool) -> None:
        """Take what the event says into ``choice``; a fault costs its capture, not the event."""
        try:
            if not self._engine:
                choice.tokens.add_chat(part.token_ids, part.logprobs, data)
                if len(choice.tokens.ids) > self._longest:
                    raise UpstreamProtocol(
                        f"the upstream sent more than the {self._longest} tokens that its model"
                        " can hold"
                    )
            if not empty:
                choice.add(part.delta)
        except EntrogateError:
            raise
        except Exception as error:  # noqa: BLE001  (fail open, on a path too hot for a context)
            choice.tokens.mark("capture_fault")
            self.turn.guard.report("reading", error)

    def _pass_on(self, choice: Choice, part: ChunkChoice, out: bytes, *, empty: bool) -> bytes:
        lane = self.lane(choice)
        before = self._reopen(lane) if lane.finish else b""
        return before + self._pass_on_in(lane, choice, part, out, empty=empty)

    def _pass_on_in(
        self, lane: Lane, choice: Choice, part: ChunkChoice, out: bytes, *, empty: bool
    ) -> bytes:
        finish = part.finish_reason
        if self.stamp is not None:
            out = self.stamp.on(_data(out))
        if part.delta.tool_calls:
            self._passing = False  # what follows may have to wait
            if choice.calls.is_renumbered:
                out = renumbered(out, part.delta.tool_calls)
            out = lane.told.tell(out, _data(out), choice)
            if finish is not None and lane.way is not Way.FREE:
                said, ended = without_finish(payload_of(_data(out)))
                now = self._hold(choice, lane, json_event(said))
                return now + self._finish(choice, lane, finish, json_event(ended))
        if finish is not None:
            return self._finish(choice, lane, finish, out)
        if lane.way is Way.FREE:
            return out
        if part.delta.tool_calls:
            return self._hold(choice, lane, out)
        return _beside_calls(choice, lane, out, empty=empty)

    def _hold(self, choice: Choice, lane: Lane, out: bytes) -> bytes:
        """Keep a tool-call event back."""
        lane.held.append(out)
        if not self.turn.gated(choice):
            # A tool that is not gated makes the whole turn pass: nothing to wait for.
            lane.way = Way.FREE
            return lane.release()
        lane.way = Way.HELD
        if not lane.looked and self.turn.request.n == 1 and self.turn.decide_early(choice):
            self.cut = choice
        lane.looked = True
        return b""

    def _reopen(self, lane: Lane) -> bytes:
        """The choice goes on after its last event: what that said is told now, in its order."""
        said, ended = without_finish(payload_of(_data(lane.finish)))
        lane.finish = json_event(ended)
        spoke = self._wanted.metadata or said["choices"][0]["delta"]
        return json_event(said) if spoke else b""

    def _finish(self, choice: Choice, lane: Lane, finish: str, out: bytes) -> bytes:
        """The last event of a choice waits for the decision and the commit."""
        choice.finish_reason = finish
        out = self.with_fingerprint(out)
        lane.finished = True
        if self._n_finished >= self.turn.request.n or lane.held:
            lane.finish = out
            return b""
        return out

    def with_fingerprint(self, out: bytes) -> bytes:
        """vLLM stamps the last chunk only where no usage chunk follows; we asked for one."""
        mark = self.turn.capabilities.system_fingerprint
        if self._wanted.usage or mark is None or b'"system_fingerprint":' in out:
            return out
        at = out.rindex(b"}\n\n")
        return out[:at] + b',"system_fingerprint":' + orjson.dumps(mark) + out[at:]

    def _read_passed(self, event: bytes) -> None:
        data = event_data(event) if event else None
        if data is None:
            return
        for part in read_uniform(data)[1].choices:
            choice = self.turn.choice(part.index)
            self._observe(choice, part, data, empty=part.delta.empty)


def _beside_calls(choice: Choice, lane: Lane, out: bytes, *, empty: bool) -> bytes:
    """An event without a piece of a call, in a turn whose calls may be held back."""
    if not empty:
        if not lane.held or choice.calls.calls:
            return out  # text is never held
        return lane.release() + out  # of a call that did not parse: its tokens come first
    if lane.held or choice.tokens.call_position() is not None:
        lane.held.append(out)  # only the ids and log-probs of tokens of the call
        return b""
    return out


def _data(event: bytes) -> bytes:
    return event_data(event) or b""

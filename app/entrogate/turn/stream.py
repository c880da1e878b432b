"""A streamed answer: text flows at once, only tool calls that may be gated wait.

The last event of the answer waits until the turn is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import msgspec
import orjson

from entrogate.errors import (
    EntrogateError,
    UpstreamError,
    UpstreamProtocol,
    UpstreamUnavailable,
    no_chunk,
)
from entrogate.turn.choice import Choice
from entrogate.turn.leg_reader import LegReader, Stamp, Way
from entrogate.turn.record import debug_object
from entrogate.turn.state import Turn
from entrogate.turn.without import Without
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.resume import chat_logprobs
from entrogate.wire.chunks import CompletionChoice, decode_completion
from entrogate.wire.errors import error_event
from entrogate.wire.sse import DONE, EventSplitter, event_data, json_event

_BACKLOG_BYTES = 2**18  # of events that went by unread
_AFTER_END_SECONDS = 1.0  # for a connection to end after [DONE], so that it can be used again


class StreamForm:
    """Chat's events."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._stamp: Stamp | None = None
        self._reader = LegReader(turn, None, calls_only=False)
        self._usage_event = b""

    @property
    def cut(self) -> Choice | None:
        """The choice whose call was suppressed before it was whole; None while there is none."""
        return self._reader.cut

    def begin_leg(self, *, calls_only: bool) -> None:
        """Read the next leg with a new reader; later legs carry the first one's id and time."""
        if len(self.turn.legs) > 1 or calls_only:
            first = self.turn.legs[0]
            self._stamp = Stamp(response_id=self.turn.response_id, created=first.created)
        self._reader = LegReader(self.turn, self._stamp, calls_only=calls_only)

    async def read(self, response: UpstreamAnswer) -> AsyncGenerator[bytes]:
        """Pass events on as they come; those of calls that may be gated wait in their lanes.

        Raises UpstreamProtocol where the stream ends too early or is no stream of chat chunks.
        """
        reader, splitter = self._reader, EventSplitter()
        async for data in response:
            if not splitter.waiting and reader.passes(data):
                yield data
                if reader.backlog_bytes > _BACKLOG_BYTES:
                    await reader.catch_up_in_slices()
                continue
            out = reader.take_all(splitter.feed(data))
            if out:
                yield out
            if reader.fault is not None:
                raise reader.fault
            if reader.cut is not None:
                return
            if reader.ended:
                break
        if not reader.ended:
            out = reader.take_all(splitter.finish())
            if out:
                yield out
            if reader.fault is not None:
                raise reader.fault
            if not reader.may_end:
                raise UpstreamUnavailable("the model server broke off its stream")
        await _drain(response)
        await reader.catch_up_in_slices()
        self._usage_event = reader.usage_event

    def catch_up(self) -> None:
        """Read what went by unread of a stream that ended before its end."""
        self._reader.catch_up()

    def passed(self, choice: Choice) -> bool:
        """Whether nothing of the choice waits, so that no decision can stop its calls."""
        return self._reader.lane(choice).way is Way.FREE

    def let_through(self, choice: Choice) -> bytes:
        """The events of the choice that waited; what comes after them passes at once."""
        lane = self._reader.lane(choice)
        lane.way = Way.FREE
        return lane.release()

    def end_at_limit(self, choice: Choice) -> None:
        """Drop the held call; the choice ends with the finish reason ``length``."""
        lane = self._reader.lane(choice)
        lane.held.clear()
        lane.finish = self._event(choice, finish="length")

    def begin_with(self, choice: Choice, position: int, draft: Without) -> bytes:
        """The event of the draft's text, in place of the call that opened at ``position``."""
        self._cut(choice, position)
        choice.tokens.begin_with(draft.tokens)
        return self._resumed_part(choice, draft.part)

    async def read_resumed(
        self, choice: Choice, position: int | None, response: UpstreamAnswer
    ) -> AsyncGenerator[bytes]:
        """Drop the held call, cut the tokens at ``position``, pass the rest on as chat events.

        Raises UpstreamProtocol where the resumed stream ends too early.
        """
        splitter = EventSplitter()
        if position is not None:
            self._cut(choice, position)
        async for data in response:
            for event in splitter.feed(data):
                out = self._resumed_event(choice, event)
                if out:
                    yield out
        if choice.finish_reason is None:
            raise UpstreamUnavailable("the model server broke off the resumed answer")

    def end(self) -> bytes:
        """The last events: each choice's end, the debug object, the usage, ``[DONE]``."""
        turn = self.turn
        tail = b"".join([lane.finish for lane in self._reader.lanes.values()])
        if turn.debug and tail:
            at = tail.rindex(b"}\n\n")
            extra = orjson.dumps(debug_object(turn), option=orjson.OPT_SERIALIZE_NUMPY)
            tail = tail[:at] + b',"entrogate":' + extra + tail[at:]
        usage = b""
        if turn.request.wanted.usage:
            usage = self._whole_usage() if turn.changed else self._usage_event
        return tail + usage + DONE

    def break_off(self, error: EntrogateError) -> bytes:
        """The end of a stream that broke off: ``error`` as an event, then ``[DONE]``."""
        return error_event(error) + DONE

    def _resumed_event(self, choice: Choice, event: bytes) -> bytes:
        """The chat event for one event of the resumed completion."""
        data = event_data(event)
        if data is None or data == b"[DONE]":
            return b""
        try:
            completion = decode_completion(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise no_chunk(error) from None
        if completion.error is not None:
            raise UpstreamProtocol(f"the upstream failed while resuming: {completion.error!r}")
        if not completion.choices:
            return b""
        return self._resumed_part(choice, completion.choices[0])

    def _cut(self, choice: Choice, position: int) -> None:
        self._reader.lane(choice).held.clear()
        self._reader.lane(choice).finish = b""
        choice.tokens.cut(position)
        choice.finish_reason = None

    def _resumed_part(self, choice: Choice, part: CompletionChoice) -> bytes:
        take_resumed(self.turn, choice, part)
        if part.finish_reason is not None:
            self._reader.lane(choice).finish = self._event(
                choice, text=part.text or None, finish=part.finish_reason, source=part
            )
            return b""
        if not part.text and not self.turn.request.wanted.metadata:
            return b""
        return self._event(choice, text=part.text, source=part)

    def _event(
        self,
        choice: Choice,
        *,
        text: str | None = None,
        finish: str | None = None,
        source: CompletionChoice | None = None,
    ) -> bytes:
        """A chat chunk in vLLM's form for tokens of a resumed answer."""
        wanted, first = self.turn.request.wanted, self.turn.legs[0]
        part: dict[str, Any] = {
            "index": choice.index,
            "delta": {} if text is None else {"content": text},
            "logprobs": chat_logprobs(source, wanted.top_logprobs)
            if source is not None and wanted.logprobs
            else None,
            "finish_reason": finish,
        }
        if finish is not None:
            part["stop_reason"] = source.stop_reason if source is not None else None
        part["token_ids"] = source.token_ids if source is not None and wanted.token_ids else None
        event = json_event(
            {
                "id": self.turn.response_id,
                "object": "chat.completion.chunk",
                "created": first.created,
                "model": self.turn.leg.model,
                "choices": [part],
            }
        )
        return self._reader.with_fingerprint(event) if finish is not None else event

    def _whole_usage(self) -> bytes:
        """Usage over all legs: the tokens of the answer, without those thrown away."""
        payload = self._usage_frame()
        prompt, completion = self.turn.spent()
        payload["usage"] |= {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }
        return json_event(payload)

    def _usage_frame(self) -> dict[str, Any]:
        """The upstream's usage event, or one like it for a leg that was cut before it came."""
        if self._usage_event:
            return orjson.loads(self._usage_event[len(b"data:") :])
        return {
            "id": self.turn.response_id,
            "object": "chat.completion.chunk",
            "created": self.turn.legs[0].created,
            "model": self.turn.leg.model,
            "choices": [],
            "usage": {},
            "system_fingerprint": self.turn.capabilities.system_fingerprint,
        }


def take_resumed(turn: Turn, choice: Choice, part: CompletionChoice) -> None:
    """Take tokens and text that were decoded after a call was masked."""
    choice.content.append(part.text)
    choice.finish_reason = part.finish_reason or choice.finish_reason
    with turn.guard.around("reading"):
        choice.tokens.add_completion(part)
        return
    choice.tokens.mark("capture_fault")


async def _drain(response: UpstreamAnswer) -> None:
    """Let the connection end in order, so that it can be used again."""
    with suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(_AFTER_END_SECONDS):
            async for _ in response:
                pass

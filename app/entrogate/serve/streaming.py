"""A streamed turn: text flows at once, only tool calls that may be gated wait.

The last event of the answer waits until the turn is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol, UpstreamUnavailable
from entrogate.serve.choice import Choice
from entrogate.serve.reader import Reader, resumed_event
from entrogate.serve.recording import debug_object
from entrogate.serve.turn import Turn
from entrogate.types import Action
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.wire.errors import error_event
from entrogate.wire.sse import DONE, EventSplitter, json_event

_log = logging.getLogger("entrogate.serve")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class StreamedTurn:
    """Streams one turn: ``open`` sends the request, ``events`` yields what the client gets."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._stack = AsyncExitStack()
        self._response: UpstreamAnswer | None = None
        self._first_response: tuple[str, int] | None = None  # id and created of the first leg
        self._usage_event = b""
        self._tail = b""
        self._muted = False  # a second try after a failed resume: the text was sent already

    async def open(self) -> UpstreamAnswer:
        """Send the current leg upstream and return the answer's head; the body is not read yet."""
        response = await self._ask()
        while response.status == 404 and self.turn.fall_back():
            await self._stack.aclose()
            response = await self._ask()
        self._response = response
        return response

    async def _ask(self) -> UpstreamAnswer:
        turn = self.turn
        body = turn.upstream_body()
        if not turn.legs_done:
            turn.gateway.metrics.observe_gateway(time.perf_counter() - turn.received)
        return await self._stack.enter_async_context(turn.asked(CHAT, body))

    async def close(self) -> None:
        """Let go of the upstream; in the middle of an answer this aborts it there."""
        await self._stack.aclose()

    async def events(self) -> AsyncGenerator[bytes]:
        """The client's stream. A fault after its first byte becomes one error event."""
        turn = self.turn
        recorded = False
        try:
            try:
                async for out in self._turn_events():
                    yield out
                recorded = True
                await turn.finish_leg(final=True)
                yield self._end()
            except EntrogateError as error:
                turn.gateway.metrics.record_upstream_error(type(error).__name__)
                turn.leg.error = turn.leg.error or str(error)
                _log.warning("turn.broke_off request=%s %s", turn.request_id, error)
                if not recorded:
                    recorded = True
                    await turn.finish_leg(final=True)
                yield error_event(error) + DONE
        finally:
            await self._stack.aclose()
            if not recorded:
                turn.leg.error = turn.leg.error or "the client went away"
                turn.gateway.in_background(turn.finish_leg(final=True))

    async def _turn_events(self) -> AsyncGenerator[bytes]:
        """All events but those that end the answer: these are left in ``self._tail``."""
        while True:
            reader = Reader(self.turn, self._first_response, muted=self._muted)
            async for out in self._read_leg(reader):
                yield out
            self._first_response = self._first_response or (reader.id, reader.created)
            self._usage_event = reader.usage_event
            again = False
            for choice in reader.undecided():
                match self.turn.applied(choice):
                    case Action.SUPPRESS:
                        async for out in self._resume(choice, reader):
                            yield out
                        again = again or self._muted
                    case Action.REPLAY:
                        await self.turn.finish_leg(final=False)
                        self.turn.replay_calls(choice)
                        again = True
                    case _:
                        if choice.held:
                            yield b"".join(choice.held)
            if not again:
                self._tail = reader.tail()
                return
            response = await self.open()
            if response.status != 200:
                raise UpstreamProtocol(
                    f"the upstream refused to go on with the turn: {response.status}"
                )

    async def _read_leg(self, reader: Reader) -> AsyncGenerator[bytes]:
        response = self._response
        if response is None:
            raise RuntimeError("open() comes before events()")
        splitter = EventSplitter()
        with self.turn.gateway.client.failures():
            async for data in response.content.iter_any():
                if not splitter.rest and reader.passes(data):
                    yield data
                    continue
                out = reader.take_all(splitter.feed(data))
                if out:
                    yield out
                if reader.cut is not None:
                    await self._stack.aclose()
                    return
        if not reader.ended:
            raise UpstreamUnavailable("the model server broke off its stream")
        await self._stack.aclose()
        reader.catch_up()
        await self.turn.collect()

    async def _resume(self, choice: Choice, reader: Reader) -> AsyncGenerator[bytes]:
        """Decode the answer without the tool call; if that fails, let the call through."""
        turn = self.turn
        position = choice.call_position()
        if position is None:
            turn.fail_open(choice, "the tool-call token is not among the sampled ids")
            yield b"".join(choice.held)
            return
        body = turn.resume_body(choice, position)
        if body is None:
            choice.cut_at_call()
            choice.finish_reason = "length"
            reader.finish_events[choice.index] = reader.make_event(choice, finish="length")
            return
        resumed = False
        try:
            async with turn.asked(COMPLETIONS, orjson.dumps(body)) as response:
                if response.status != 200:
                    detail = (await response.read())[:300].decode(errors="replace")
                    raise UpstreamProtocol(f"resuming answered {response.status}: {detail}")
                choice.cut_at_call()
                resumed = True
                splitter = EventSplitter()
                async for data in response.content.iter_any():
                    for event in splitter.feed(data):
                        out = resumed_event(choice, event, reader)
                        if out:
                            yield out
            if choice.finish_reason is None:
                raise UpstreamUnavailable("the model server broke off the resumed answer")
            await turn.collect_resumed(choice)
        except EntrogateError as error:
            if resumed:
                raise
            turn.fail_open(choice, str(error))
            if reader.cut is None:
                yield b"".join(choice.held)
                return
            # The call was cut short: ask for the turn once more, ungated, and send its calls only.
            turn.leg.choices.pop(choice.index)
            self._muted = True

    def _end(self) -> bytes:
        """The last bytes of the stream, sent when the turn is committed."""
        turn, tail = self.turn, self._tail
        if turn.debug and tail:
            at = tail.rindex(b"}\n\n")
            extra = orjson.dumps(debug_object(turn), option=orjson.OPT_SERIALIZE_NUMPY)
            tail = tail[:at] + b',"entrogate":' + extra + tail[at:]
        usage = b""
        if turn.request.wanted.usage:
            changed = any(r.replayed or r.wasted_tokens for r in turn.records)
            usage = self._whole_usage() if changed else self._usage_event
        return tail + usage + DONE

    def _whole_usage(self) -> bytes:
        """Usage over all legs: the tokens of the answer, without those thrown away."""
        payload = self._usage_frame()
        records = self.turn.records
        prompt = len(records[0].prompt_token_ids)
        completion = sum(len(record.capture) for record in records)
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
        response_id, created = self._first_response or ("", 0)
        return {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": self.turn.leg.model,
            "choices": [],
            "usage": {},
            "system_fingerprint": self.turn.capabilities.system_fingerprint,
        }

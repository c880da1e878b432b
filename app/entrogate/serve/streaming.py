"""A streamed turn: every event crosses as bytes, only tool calls that may be gated wait.

The hot path is `_Reader.take`: decode what we need of an event, cut out what the client did not ask
for, pass it on. The last event of the answer waits until the turn is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol, UpstreamUnavailable
from entrogate.serve.choice import Choice
from entrogate.serve.turn import Turn
from entrogate.types import Action
from entrogate.upstream.resume import chat_logprobs, resume_request
from entrogate.wire.chunks import Chunk, CompletionChoice, decode_chunk, decode_completion
from entrogate.wire.errors import error_event
from entrogate.wire.sse import DONE, EventSplitter, event_data, json_event
from entrogate.wire.strip import strip_event

_log = logging.getLogger("entrogate.serve")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class StreamedTurn:
    """Streams one turn: ``open`` sends the request, ``events`` yields what the client gets."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._stack = AsyncExitStack()
        self._response: aiohttp.ClientResponse | None = None
        self._first_response: tuple[str, int] | None = None  # id and created of the first leg
        self._usage_event = b""
        self._tail = b""
        self._muted = False  # a second try after a failed resume: the text was sent already

    async def open(self) -> aiohttp.ClientResponse:
        """Send the current leg upstream and return the answer's head; the body is not read yet."""
        turn = self.turn
        body = orjson.dumps(turn.leg.request.upstream(turn.capabilities.top_logprobs))
        if not turn.legs_done:
            turn.gateway.metrics.observe_gateway(time.perf_counter() - turn.received)
        self._response = await self._stack.enter_async_context(
            turn.gateway.client.request("POST", CHAT, body=body, headers=turn.headers)
        )
        return self._response

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
            reader = _Reader(self.turn, self._first_response, muted=self._muted)
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
            await self._stack.aclose()
            response = await self.open()
            if response.status != 200:
                raise UpstreamProtocol(
                    f"the upstream refused to go on with the turn: {response.status}"
                )

    async def _read_leg(self, reader: _Reader) -> AsyncGenerator[bytes]:
        response = self._response
        if response is None:
            raise RuntimeError("open() comes before events()")
        splitter = EventSplitter()
        async for data in response.content.iter_any():
            out = reader.take_all(splitter.feed(data))
            if out:
                yield out
            if reader.cut is not None:
                await self._stack.aclose()
                return
        if not reader.ended:
            raise UpstreamUnavailable("the model server broke off its stream")
        if not reader.usage_event:
            self.turn.leg.check_usage(None)

    async def _resume(self, choice: Choice, reader: _Reader) -> AsyncGenerator[bytes]:
        """Decode the answer without the tool call; if that fails, let the call through."""
        turn = self.turn
        position = choice.call_position()
        if position is None:
            turn.fail_open(choice, "the tool-call token is not among the sampled ids")
            yield b"".join(choice.held)
            return
        body = resume_request(
            turn.leg.request,
            turn.capabilities,
            prompt_token_ids=turn.leg.prompt_token_ids,
            kept_token_ids=choice.token_ids[:position],
        )
        if body is None:
            choice.cut_at_call()
            choice.finish_reason = "length"
            reader.finish_events[choice.index] = reader.make_event(choice, finish="length")
            return
        resumed = False
        try:
            async with turn.gateway.client.request(
                "POST", COMPLETIONS, body=orjson.dumps(body), headers=turn.headers
            ) as response:
                if response.status != 200:
                    detail = (await response.read())[:300].decode(errors="replace")
                    raise UpstreamProtocol(f"resuming answered {response.status}: {detail}")
                choice.cut_at_call()
                resumed = True
                splitter = EventSplitter()
                async for data in response.content.iter_any():
                    for event in splitter.feed(data):
                        out = _resumed_event(choice, event, reader)
                        if out:
                            yield out
            if choice.finish_reason is None:
                raise UpstreamUnavailable("the model server broke off the resumed answer")
        except EntrogateError as error:
            if resumed:
                raise
            turn.fail_open(choice, str(error))
            if reader.cut is None:
                yield b"".join(choice.held)
                return
            # The call was cut short: ask for the turn once more, ungated; its text was sent already.
            turn.leg.choices.pop(choice.index)
            self._muted = True

    def _end(self) -> bytes:
        """The last bytes of the stream, sent when the turn is committed."""
        turn, tail = self.turn, self._tail
        if turn.debug and tail:
            at = tail.rindex(b"}\n\n")
            extra = orjson.dumps(turn.debug_object(), option=orjson.OPT_SERIALIZE_NUMPY)
            tail = tail[:at] + b',"entrogate":' + extra + tail[at:]
        usage = b""
        if turn.request.wanted.usage and self._usage_event:
            changed = any(r.replayed or r.wasted_tokens for r in turn.records)
            usage = self._whole_usage() if changed else self._usage_event
        return tail + usage + DONE

    def _whole_usage(self) -> bytes:
        """Usage over all legs: the tokens of the answer, without those thrown away."""
        payload = orjson.loads(self._usage_event[len(b"data:") :])
        records = self.turn.records
        prompt = len(records[0].prompt_token_ids)
        completion = sum(len(record.capture) for record in records)
        payload["usage"] |= {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }
        return json_event(payload)


class _Reader:
    """Takes the events of one leg apart and decides which of them wait."""

    def __init__(self, turn: Turn, first: tuple[str, int] | None, *, muted: bool) -> None:
        self.turn = turn
        self.id = ""
        self.created = 0
        self.ended = False
        self.cut: Choice | None = None
        self.usage_event = b""
        self.finish_events: dict[int, bytes] = {}
        self._first = first
        self._muted = muted
        self._holds = turn.judge.acts and turn.request.has_tools and not muted
        self._released: set[int] = set()
        self._finished = 0
        self._wanted = turn.request.wanted
        self._n = turn.request.n

    def take_all(self, events: list[bytes]) -> bytes:
        """What the client gets of ``events`` now."""
        if len(events) == 1:
            return self.take(events[0])
        out: list[bytes] = []
        for event in events:
            out.append(self.take(event))
            if self.cut is not None:
                break
        return b"".join(out)

    def take(self, event: bytes) -> bytes:
        """What the client gets of one event now; nothing for one that waits or is ours."""
        data = event[6:-2] if event.startswith(b"data: {") else event_data(event)
        if data is None:
            return event
        if data == b"[DONE]":
            self.ended = True
            return b""
        try:
            chunk = decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamProtocol(
                f"the upstream sent an event that is no chunk: {error}"
            ) from None
        if chunk.error is not None:
            self.turn.leg.error = "the upstream reported an error in its stream"
            return event
        if not chunk.choices:
            self._take_usage(chunk, event)
            return b""
        if not self.id:
            self._begin(chunk)
        return self._take_choice(chunk, event)

    def undecided(self) -> list[Choice]:
        """Choices with calls, decided now; those that were released or have none are left out."""
        judge, leg = self.turn.judge, self.turn.leg
        if self.cut is not None:
            leg.decided[self.cut.index] = judge.early_record(self.cut)
            return [self.cut]
        for choice in leg.choices.values():
            if choice.calls:
                leg.decided[choice.index] = judge.decide(choice)
                if choice.index in self._released or not self._holds:
                    self._let_through(choice)
        return [c for c in leg.choices.values() if c.held]

    def tail(self) -> bytes:
        """The finish events, in the order in which they came."""
        return b"".join(self.finish_events.values())

    def make_event(
        self,
        choice: Choice,
        *,
        text: str | None = None,
        finish: str | None = None,
        source: CompletionChoice | None = None,
    ) -> bytes:
        """A chat chunk in vLLM's form for tokens of a resumed answer."""
        wanted = self._wanted
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
        payload = {
            "id": self._first[0] if self._first else self.id,
            "object": "chat.completion.chunk",
            "created": self._first[1] if self._first else self.created,
            "model": self.turn.leg.model,
            "choices": [part],
        }
        event = json_event(payload)
        return self._with_fingerprint(event) if finish is not None else event

    def _begin(self, chunk: Chunk) -> None:
        leg = self.turn.leg
        self.id, self.created = chunk.id, chunk.created
        leg.response_id, leg.created, leg.model = chunk.id, chunk.created, chunk.model
        if chunk.prompt_token_ids is not None:
            self.turn.set_prompt(chunk.prompt_token_ids)

    def _take_usage(self, chunk: Chunk, event: bytes) -> None:
        self.usage_event = event
        if chunk.usage is not None:
            self.turn.leg.check_usage(chunk.usage.completion_tokens)

    def _take_choice(self, chunk: Chunk, event: bytes) -> bytes:
        part = chunk.choices[0]
        choice = self.turn.leg.choices.get(part.index) or self.turn.new_choice(part.index)
        choice.add_tokens(part.token_ids, part.logprobs)
        delta = part.delta
        finish = part.finish_reason
        empty = delta.empty
        if not empty:
            choice.add_message(delta)
        elif finish is None and not self._wanted.metadata:
            return b""  # exists only because we asked for ids and log-probs
        if not self._wanted.reasoning and finish is None and delta.thought is not None:
            return b""
        out = strip_event(event, self._wanted)
        if self._first is not None:
            if delta.role is not None or (self._muted and not delta.tool_calls and finish is None):
                return b""
            out = self._under_first_id(out)
        if delta.tool_calls:
            out = _minted(out, choice)
        if finish is not None:
            choice.finish_reason = finish
            return self._finish(choice, self._with_fingerprint(out))
        if not self._holds or not (delta.tool_calls or choice.held):
            return out
        return self._hold(choice, out, text=delta.content is not None and not delta.tool_calls)

    def _hold(self, choice: Choice, out: bytes, *, text: bool) -> bytes:
        """Keep a tool-call event back; text is never held."""
        if text or choice.index in self._released:
            return out
        choice.held.append(out)
        if any(call.name and not self.turn.judge.gates(call.name) for call in choice.calls):
            # A tool that is not gated makes the whole turn pass: nothing to wait for.
            self._released.add(choice.index)
            released = b"".join(choice.held)
            choice.held.clear()
            return released
        if self._n == 1 and choice.calls[0].name and choice.call_position() is not None:
            if len(choice.held) == 1 and self.turn.judge.decide_early(choice):
                self.cut = choice
        return b""

    def _finish(self, choice: Choice, out: bytes) -> bytes:
        """The last event of a choice waits for the decision and the commit."""
        self.finish_events[choice.index] = out
        self._finished += 1
        if self._finished >= self._n or choice.held:
            return b""
        return self.finish_events.pop(choice.index)

    def _let_through(self, choice: Choice) -> None:
        """The decision came too late to act on: it is recorded with what was done."""
        if self.turn.applied(choice) is not Action.ALLOW:
            self.turn.fail_open(choice, "the call was already on its way to the client")

    def _under_first_id(self, out: bytes) -> bytes:
        if self._first is None:
            return out
        first_id, created = self._first
        out = out.replace(b'"id":"' + self.id.encode(), b'"id":"' + first_id.encode(), 1)
        return out.replace(b'"created":%d' % self.created, b'"created":%d' % created, 1)

    def _with_fingerprint(self, out: bytes) -> bytes:
        """vLLM stamps the last chunk only where no usage chunk follows; we asked for one."""
        mark = self.turn.capabilities.system_fingerprint
        if self._wanted.usage or mark is None or b'"system_fingerprint":' in out:
            return out
        at = out.rindex(b"}\n\n")
        return out[:at] + b',"system_fingerprint":' + orjson.dumps(mark) + out[at:]


def _minted(event: bytes, choice: Choice) -> bytes:
    for call in choice.calls:
        if call.upstream_id:
            old, new = call.upstream_id.encode(), call.call_id.encode()
            event = event.replace(b'"id":"' + old + b'"', b'"id":"' + new + b'"', 1)
    return event


def _resumed_event(choice: Choice, event: bytes, reader: _Reader) -> bytes:
    """The chat event for one event of the resumed completion."""
    data = event_data(event)
    if data is None or data == b"[DONE]":
        return b""
    try:
        completion = decode_completion(data)
    except msgspec.DecodeError as error:
        raise UpstreamProtocol(f"the upstream sent an event that is no chunk: {error}") from None
    if completion.error is not None:
        raise UpstreamProtocol(f"the upstream failed while resuming: {bytes(completion.error)!r}")
    if not completion.choices:
        return b""
    part = completion.choices[0]
    choice.add_completion(part)
    if part.finish_reason is not None:
        reader.finish_events[choice.index] = reader.make_event(
            choice, text=part.text or None, finish=part.finish_reason, source=part
        )
        return b""
    if not part.text and not reader.turn.request.wanted.metadata:
        return b""
    return reader.make_event(choice, text=part.text, source=part)

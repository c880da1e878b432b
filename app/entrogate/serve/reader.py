"""Takes a streamed answer apart, event by event, and decides which events wait.

The hot path is `Reader.take`: decode what we need of an event, cut out what the client did not ask
for, pass it on as bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from entrogate.errors import UpstreamProtocol
from entrogate.serve.choice import Choice
from entrogate.serve.turn import Turn
from entrogate.types import Action
from entrogate.upstream.resume import chat_logprobs
from entrogate.wire.chunks import Chunk, CompletionChoice, decode_chunk, decode_completion
from entrogate.wire.sse import event_data, json_event
from entrogate.wire.strip import strip_event


class Reader:
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
        self._tried: set[int] = set()  # choices whose first call was looked at for an early cut
        self._finished = 0
        self._wanted = turn.request.wanted
        self._n = turn.request.n
        self._engine = turn.leg.captured is not None
        self._plain = self._engine and first is None and not muted and self._wanted.reasoning
        self._passed: list[bytes] = []

    def passes(self, data: bytes) -> bool:
        """May these bytes go to the client as they are? Their text is read when there is time.

        Yes for whole events of text where the engine captures, so that nothing was added to them
        that the client did not ask for. Inside a JSON string every quote is escaped: what is looked
        for can only be a field.
        """
        if (
            not self._plain
            or not self.id
            or data[-2:] != b"\n\n"
            or b'"finish_reason":"' in data
            or b'"tool_calls":[{' in data
            or b'"choices":[]' in data
            or b'"error":' in data
            or b"[DONE]" in data
        ):
            return False
        self._passed.append(data)
        return True

    def catch_up(self) -> None:
        """Read the text of the events that went by."""
        passed, self._passed = self._passed, []
        choices = self.turn.leg.choices
        for event in b"".join(passed).split(b"\n\n"):
            data = event_data(event) if event else None
            if data is None:
                continue
            for part in decode_chunk(data).choices:
                choice = choices.get(part.index) or self.turn.new_choice(part.index)
                choice.add_message(part.delta)

    def take_all(self, events: list[bytes]) -> bytes:
        """What the client gets of ``events`` now."""
        if self._passed:
            self.catch_up()
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
            self.turn.leg.completion_tokens = chunk.usage.completion_tokens

    def _take_choice(self, chunk: Chunk, event: bytes) -> bytes:
        part = chunk.choices[0]
        choice = self.turn.leg.choices.get(part.index) or self.turn.new_choice(part.index)
        if not self._engine:
            choice.add_tokens(part.token_ids, part.logprobs, event)
        delta = part.delta
        finish = part.finish_reason
        empty = delta.empty
        if not empty:
            choice.add_message(delta)
        elif finish is None and not self._wanted.metadata and not self._engine:
            return b""  # exists only because we asked for ids and log-probs
        if not self._wanted.reasoning and finish is None and delta.thought is not None:
            return b""
        out = event if self._engine else strip_event(event, self._wanted)
        if self._first is not None:
            if delta.role is not None or (self._muted and not delta.tool_calls and finish is None):
                return b""
            out = self._under_first_id(out)
        if delta.tool_calls:
            out = _minted(out, choice)
        if finish is not None:
            choice.finish_reason = finish
            return self._finish(choice, self._with_fingerprint(out))
        if not self._holds or choice.index in self._released:
            return out
        if delta.tool_calls:
            self._plain = False  # what follows may have to wait
            return self._hold(choice, out)
        return self._beside_calls(choice, out, empty=empty)

    def _beside_calls(self, choice: Choice, out: bytes, *, empty: bool) -> bytes:
        """An event without a piece of a call, in a turn whose calls may be held back."""
        if not empty:
            # Text is never held. Where it follows a call that did not parse, its tokens come first.
            return out if choice.calls else self._release(choice) + out
        if choice.held or choice.call_position() is not None:
            choice.held.append(out)  # only the ids and log-probs of tokens of the call
            return b""
        return out

    def _hold(self, choice: Choice, out: bytes) -> bytes:
        """Keep a tool-call event back."""
        choice.held.append(out)
        if any(call.name and not self.turn.judge.gates(call.name) for call in choice.calls):
            # A tool that is not gated makes the whole turn pass: nothing to wait for.
            self._released.add(choice.index)
            return self._release(choice)
        if choice.index not in self._tried and self._n == 1 and self._cut_now(choice):
            self.cut = choice
        self._tried.add(choice.index)
        return b""

    def _release(self, choice: Choice) -> bytes:
        released = b"".join(choice.held)
        choice.held.clear()
        return released

    def _cut_now(self, choice: Choice) -> bool:
        """May the stream be cut at the first sign of a call, its arguments unseen?

        Not while the model could still go on to call a tool that must not be suppressed.
        """
        if not choice.calls[0].name or choice.call_position() is None:
            return False
        judge, tools = self.turn.judge, self.turn.request.tool_names
        decided = judge.decide_early(choice) if all(map(judge.gates, tools)) else ()
        if decided:
            self.turn.leg.decided[choice.index] = decided
        return bool(decided)

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


def resumed_event(choice: Choice, event: bytes, reader: Reader) -> bytes:
    """The chat event for one event of the resumed completion."""
    data = event_data(event)
    if data is None or data == b"[DONE]":
        return b""
    try:
        completion = decode_completion(data)
    except msgspec.DecodeError as error:
        raise UpstreamProtocol(f"the upstream sent an event that is no chunk: {error}") from None
    if completion.error is not None:
        raise UpstreamProtocol(f"the upstream failed while resuming: {completion.error!r}")
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

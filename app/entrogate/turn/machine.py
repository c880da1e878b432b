"""Runs a turn: asks, reads, decides, carries out, and records, leg by leg.

    ask ─► read ─► decide on each choice ─┬─ allow ────► its calls go to the client
                                          ├─ suppress ─► the answer goes on without the call
                                          └─ replay ───► the next leg, with the earlier result
    and when no leg follows: record ─► the last bytes

The same for a streamed and a whole answer; what differs is in the `Form`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from entrogate.errors import EntrogateError, UpstreamError, UpstreamProtocol
from entrogate.turn.choice import Choice
from entrogate.turn.drafting import draft, rest_seed
from entrogate.turn.events import said_failure
from entrogate.turn.form import Form
from entrogate.turn.session import Session
from entrogate.turn.state import Leg
from entrogate.turn.without import Draft, take_captured
from entrogate.types import Action, CallRecord, TurnRecord
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.capabilities import Way

_log = logging.getLogger("entrogate.turn")


_NO_STREAM = ("application/json", "text/html")


class Machine:
    """Of one turn: `open`, then `events`."""

    def __init__(self, session: Session, form: Form) -> None:
        self.session = session
        self.turn = session.turn
        self.form = form
        self._response: UpstreamAnswer | None = None
        self._ask_again = False
        self._recorded = False  # the current leg; it is recorded once, whatever happens

    async def open(self) -> tuple[int, bytes] | None:
        """Ask for the first leg: None when the answer has begun, else status and body of what the
        model server said instead. Raises UpstreamError when it said nothing."""
        try:
            response = await self.session.ask_chat()
            if response.status == 200:
                if self.turn.request.stream and response.content_type in _NO_STREAM:
                    await _check_stream(response)
                self._response = response
                return None
            if response.status >= 500:
                self.session.parts.metrics.record_upstream_error("UpstreamStatus")
            self.turn.retry_after = response.headers.get("retry-after", "")
            return response.status, await response.read_text()
        except UpstreamError as error:
            self.session.parts.metrics.record_upstream_error(type(error).__name__)
            raise

    async def events(self) -> AsyncGenerator[bytes]:
        """What the client gets, in order."""
        broke_off = "a fault of the gateway broke off the answer"
        try:
            async for out in self._legs():
                yield out
            await self._finish_leg(final=True)
            yield self.form.end()
        except EntrogateError as error:
            yield await self._break_off(error)
        except (asyncio.CancelledError, GeneratorExit):
            left = self.turn.client_left
            broke_off = "the client went away" if left else "the gateway stopped"
            raise
        finally:
            if not self._recorded:
                self._recorded = True
                self.turn.leg.error = self.turn.leg.error or broke_off
                self.session.parts.in_background(self.session.commit(self._records(final=True)))

    async def _break_off(self, error: EntrogateError) -> bytes:
        """A fault of the model server after its answer began."""
        turn = self.turn
        self.session.parts.metrics.record_upstream_error(type(error).__name__)
        _log.warning("turn.broke_off request=%s %s", turn.request_id, error)
        if not self._recorded:
            turn.leg.error = turn.leg.error or str(error)
            await self._finish_leg(final=True)
        return self.form.break_off(error)

    async def _legs(self) -> AsyncGenerator[bytes]:
        """All that leaves before the turn is recorded."""
        while True:
            if self._response is None:
                raise RuntimeError("open() comes before events()")
            async for out in self.form.read(self._response):
                yield out
            await self.session.hang_up()
            cut = self.form.cut
            if cut is None:
                await self.session.collect()
            self._ask_again = False
            for choice in [cut] if cut is not None else list(self.turn.leg.choices.values()):
                async for out in self._carry_out(choice, decided=cut is not None):
                    yield out
            if not self._ask_again:
                return
            self._response = await self._ask_next()

    async def _carry_out(self, choice: Choice, *, decided: bool) -> AsyncGenerator[bytes]:
        """Decide on the calls of ``choice``, unless that is done, and do it."""
        turn = self.turn
        if not decided and choice.calls.calls:
            await self._decide(choice)
        action = turn.applied(choice)
        if action is not Action.ALLOW and self.form.passed(choice):
            turn.fail_open(choice, "the call was already on its way to the client")
            action = Action.ALLOW
        if action is Action.SUPPRESS:
            async for out in self._resume(choice):
                yield out
        elif action is Action.REPLAY:
            await self._finish_leg(final=False)
            self._next_leg(choice)
        else:
            out = self.form.let_through(choice)
            if out:
                yield out

    async def _decide(self, choice: Choice) -> None:
        """Decide on the calls of ``choice``, with a draft where that could change anything."""
        turn = self.turn
        turn.decide(choice)
        if self.form.passed(choice) or not turn.lacks_draft(choice):
            return
        made = await draft(self.session, choice)
        if made is not None:
            turn.judge.drafts[choice.index] = made
            turn.decide(choice)

    async def _resume(self, choice: Choice) -> AsyncGenerator[bytes]:
        """The answer without the tool call; if there is none, let the call through."""
        turn, position = self.turn, choice.tokens.call_position()
        made = turn.judge.drafts.get(choice.index)
        if turn.capabilities.way is Way.NO_TOOLS:
            made, position = made or await draft(self.session, choice), 0
        if position is None or (made is None and turn.capabilities.way is Way.NO_TOOLS):
            yield self._give_up(choice, "the answer cannot go on without the call")
            return
        try:
            if made is not None and made.begins_answer(turn.leg.request.body):
                yield self._begin_with(choice, position, made)
                if made.whole:
                    return
                position = None
            async for out in self._rest(choice, position, made):
                yield out
        except EntrogateError as error:
            if choice.tokens.resumes_at is not None:
                raise  # the client has a part of the new answer
            yield self._give_up(choice, str(error))

    def _give_up(self, choice: Choice, why: str) -> bytes:
        """The calls of ``choice`` go through after all."""
        self.turn.fail_open(choice, why)
        if self.form.cut is None:
            return self.form.let_through(choice)
        self._ask_for_calls(choice)
        return b""

    def _begin_with(self, choice: Choice, position: int, made: Draft) -> bytes:
        """The draft as the beginning of the answer, or all of it."""
        found = made.without
        if found.way is Way.NO_TOOLS:
            choice.tokens.mark("without_tools")  # sampled after another prompt
        if not made.whole:
            part = msgspec.structs.replace(found.part, finish_reason=None, stop_reason=None)
            found = replace(found, part=part)
        return self.form.begin_with(choice, position, found)

    async def _rest(
        self, choice: Choice, position: int | None, made: Draft | None
    ) -> AsyncGenerator[bytes]:
        """Decode on from token ``position``; None: from the end, where the call is cut off."""
        with ExitStack() as followed:
            capture = self.session.follow(followed, choice)
            start = len(choice.tokens.ids) if position is None else position
            seed = rest_seed(self.turn, made if position is None else None)
            body = self.session.resume_body(choice, start, capture, seed)
            if body is None:
                if position is not None:
                    choice.tokens.cut(position)
                choice.finish_reason = "length"
                self.form.end_at_limit(choice)
                return
            response = await self.session.ask_resumed(body)
            async for out in self.form.read_resumed(choice, position, response):
                yield out
            await self.session.hang_up()
            if capture is not None:
                with self.turn.guard.around("capture"):
                    await take_captured(choice.tokens, capture)
                    return
                choice.tokens.mark("capture_fault")

    def _ask_for_calls(self, choice: Choice) -> None:
        """The call was cut short and cannot be taken back: ask once more, for its calls alone."""
        leg = self.turn.leg
        del leg.choices[choice.index]
        again = self.turn.choice(choice.index)
        again.say_again(choice)
        again.tokens.mark("asked_again")
        leg.upstream_id = ""
        self.form.begin_leg(calls_only=True)
        self._ask_again = True

    async def _ask_next(self) -> UpstreamAnswer:
        response = await self.session.ask_chat()
        if response.status != 200:
            raise UpstreamProtocol(
                f"the upstream refused to go on with the turn: {response.status}"
            )
        return response

    def _records(self, *, final: bool) -> list[TurnRecord]:
        with self.turn.guard.around("reading"):
            self.form.catch_up()
        return self.session.records(final=final)

    async def _finish_leg(self, *, final: bool) -> None:
        """Record the current leg."""
        self._recorded = True
        await self.session.commit(self._records(final=final))

    def _next_leg(self, choice: Choice) -> None:
        """Begin the leg that plays the client's round trip, with results it already sent once."""
        turn, leg = self.turn, self.turn.leg
        message = choice.message(calls=True)
        self._reason_like_the_client(message)
        results = [self._earlier_result(record) for record in leg.decided[choice.index]]
        messages = [*leg.request.messages, message, *results]
        body = {**leg.request.body, "messages": messages}
        turn.judge.note_replay()
        parent = turn.heads[-1] if turn.heads else leg.parent
        request = replace(leg.request, messages=messages, body=body)
        turn.judge.parent = parent
        turn.legs.append(Leg(request=request, parent=parent))
        self.form.begin_leg(calls_only=False)
        self._recorded = False
        self._ask_again = True

    def _earlier_result(self, record: CallRecord) -> dict[str, Any]:
        """The tool message that answers a replayed call, as the client wrote it once."""
        judge = self.turn.judge
        known = judge.loops.known(record.name, record.arguments)
        if known is None:
            raise RuntimeError("a call without an earlier result was to be replayed")
        turn = len(self.turn.leg.request.messages)
        asked = known.dated_by or known.call_id
        judge.earlier.add(replace(known, call_id=record.call_id, turn=turn, dated_by=asked))
        return {"role": "tool", "tool_call_id": record.call_id, "content": known.content}

    def _reason_like_the_client(self, message: dict[str, Any]) -> None:
        """Send the reasoning back under the name that the client's own history uses, or not."""
        reasoning = message.pop("reasoning", None)
        for earlier in self.turn.leg.request.messages:
            for name in ("reasoning", "reasoning_content"):
                if earlier.get("role") == "assistant" and earlier.get(name):
                    message[name] = reasoning
                    return


async def _check_stream(response: UpstreamAnswer) -> None:
    """Raises UpstreamProtocol where something else came with status 200, a failure most often.

    Some servers name the wrong type and send events all the same.
    """
    if (await response.peek()).lstrip()[:1] not in (b"{", b"[", b"<"):
        return
    body = await response.read_text()
    said = said_failure(body) or body[:300].decode(errors="replace").strip()
    raise UpstreamProtocol(
        f"the model server answered with {response.content_type} where a stream was asked for:"
        f" {said}"
    )

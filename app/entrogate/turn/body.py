"""A whole answer: it arrives whole, is decided on, and becomes one body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol
from entrogate.turn.choice import Choice
from entrogate.turn.events import is_compact, payload_of, said_failure
from entrogate.turn.record import debug_object
from entrogate.turn.state import Turn
from entrogate.turn.stream import take_resumed
from entrogate.turn.without import Without
from entrogate.types import Action
from entrogate.upstream.answer import UpstreamAnswer
from entrogate.upstream.resume import chat_logprobs
from entrogate.wire.chunks import (
    Body,
    BodyChoice,
    CompletionChoice,
    decode_body,
    decode_completion,
    is_foreign,
)
from entrogate.wire.dialects import uniform
from entrogate.wire.strip import strip_body

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """How a choice ends whose call was suppressed; ``sources`` are the parts that followed."""

    finish_reason: str | None
    sources: tuple[CompletionChoice, ...] = ()

    @property
    def stop_reason(self) -> int | str | None:
        """What the server said of the stop, with the last part."""
        return self.sources[-1].stop_reason if self.sources else None


class BodyForm:
    """Chat's body."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self._raw = b""
        self._rests: dict[int, _Rest] = {}

    @property
    def cut(self) -> Choice | None:
        """Always None: a whole answer is not cut while it is read."""
        return None

    def begin_leg(self, *, calls_only: bool) -> None:  # noqa: ARG002  (the stream's)
        """Forget the answer of the leg before."""
        self._raw = b""
        self._rests = {}

    async def read(self, response: UpstreamAnswer) -> AsyncGenerator[bytes]:
        """Read the whole answer into the leg; nothing leaves before the end.

        Raises UpstreamProtocol for what is no chat completion or has no choices.
        """
        raw = await response.read()
        try:
            raw.decode()  # fields that are skipped below are not checked there
            raw, body = _read_body(raw)
            if not is_compact(raw):
                raw = orjson.dumps(orjson.loads(raw))
            elif b"\\u" in raw:
                orjson.loads(raw)  # refuses half of a surrogate pair
        except ValueError as error:
            raise UpstreamProtocol(
                f"the upstream's answer is no chat completion: {error}"
            ) from None
        if not body.choices:
            raise UpstreamProtocol("the upstream's answer has no choices")
        if len({part.index for part in body.choices}) < len(body.choices):
            raise UpstreamProtocol("the upstream's answer has two choices with the same index")
        leg = self.turn.leg
        leg.upstream_id, leg.created, leg.model = body.id, body.created, body.model
        leg.usage = body.usage
        self._raw = raw
        if body.prompt_token_ids is not None:
            self.turn.set_prompt(body.prompt_token_ids)
        for part in body.choices:
            self._take(part, raw)
        return
        yield b""  # nothing leaves before the end

    def passed(self, choice: Choice) -> bool:  # noqa: ARG002
        """Always False: nothing has left before the decision."""
        return False

    def let_through(self, choice: Choice) -> bytes:  # noqa: ARG002
        """Nothing to release: the call stays in the body."""
        return b""

    def end_at_limit(self, choice: Choice) -> None:
        """The choice ends without its call, with the finish reason ``length``."""
        self._take_rest(choice, "length")

    def begin_with(self, choice: Choice, position: int, draft: Without) -> bytes:
        """Take the draft in place of the call; it leaves with the body."""
        choice.tokens.cut(position)
        choice.tokens.begin_with(draft.tokens)
        take_resumed(self.turn, choice, draft.part)
        self._take_rest(choice, draft.part.finish_reason, draft.part)
        return b""

    async def read_resumed(
        self, choice: Choice, position: int | None, response: UpstreamAnswer
    ) -> AsyncGenerator[bytes]:
        """Read the rest of a choice that was cut at token ``position``.

        Raises UpstreamProtocol for what is no completion.
        """
        try:
            completion = decode_completion(await response.read()).choices[0]
        except (ValueError, IndexError) as error:
            raise UpstreamProtocol(f"the resumed answer is no completion: {error}") from None
        if position is not None:
            choice.tokens.cut(position)
        choice.finish_reason = None
        take_resumed(self.turn, choice, completion)
        self._take_rest(choice, completion.finish_reason, completion)
        return
        yield b""  # nothing leaves before the end

    def _take_rest(self, choice: Choice, finish: str | None, *parts: CompletionChoice) -> None:
        before = self._rests.get(choice.index)
        sources = (before.sources if before is not None else ()) + parts
        self._rests[choice.index] = _Rest(finish_reason=finish, sources=sources)

    def catch_up(self) -> None:
        """Nothing goes to the client unread."""

    def end(self) -> bytes:
        """The client's body: the upstream's own bytes, unless something in them was decided on."""
        turn, raw = self.turn, self._raw
        if not turn.capabilities.engine or not turn.request.wanted.reasoning:
            raw = strip_body(raw, turn.request.wanted)
        calls = any(choice.calls.calls for choice in turn.leg.choices.values())
        ours = turn.leg.upstream_id == turn.response_id
        if ours and not calls and not turn.changed and not turn.debug:
            return raw
        answer = payload_of(raw)
        answer["id"] = turn.response_id
        for part in answer["choices"]:
            self._edit(part)
        if turn.changed:
            prompt, sampled = turn.spent()
            answer["usage"] = (answer.get("usage") or {}) | {
                "prompt_tokens": prompt,
                "completion_tokens": sampled,
                "total_tokens": prompt + sampled,
            }
        if turn.debug:
            answer["entrogate"] = debug_object(turn)
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    def break_off(self, error: EntrogateError) -> bytes:
        """Raises ``error``: a whole answer that breaks off becomes an error response."""
        raise error

    @property
    def decision(self) -> str | None:
        """What was done about the calls of the turn; None where none was proposed."""
        records = [record for some in self.turn.leg.decided.values() for record in some]
        applied = [record.decision.applied for record in records if record.likely]
        replays = [Action.REPLAY] * (len(self.turn.legs) - 1)
        return ",".join([*replays, *applied]) or None

    def _take(self, part: BodyChoice, raw: bytes) -> None:
        choice = self.turn.choice(part.index)
        choice.finish_reason = part.finish_reason
        choice.add(part.message, whole=True)
        if self.turn.capabilities.engine:
            return  # its tokens come from there
        with self.turn.guard.around("reading"):
            choice.tokens.add_chat(part.token_ids, part.logprobs, raw)
            return
        choice.tokens.mark("capture_fault")

    def _edit(self, part: Json) -> None:
        """Bring one choice of the answer to what was decided, under our ids."""
        choice = self.turn.leg.choices[part["index"]]
        message: Json = part["message"]
        calls = cast("list[Json]", message.get("tool_calls") or [])
        for proposed, call in zip(choice.proposed(), calls, strict=True):
            call["id"] = proposed.call_id
        rest = self._rests.get(choice.index)
        if rest is not None:
            self._apply(choice, part, rest)
        for leg in reversed(self.turn.legs[:-1]):
            earlier = leg.choices.get(choice.index)
            if earlier is not None:
                _prepend(message, earlier.message(calls=False))

    def _apply(self, choice: Choice, part: Json, rest: _Rest) -> None:
        wanted = self.turn.request.wanted
        part["message"].pop("tool_calls", None)  # vLLM leaves an empty list out
        part["message"]["content"] = "".join(choice.content)
        part["finish_reason"] = rest.finish_reason
        part["stop_reason"] = rest.stop_reason
        if wanted.token_ids:
            part["token_ids"] = choice.tokens.ids
        if wanted.logprobs and part.get("logprobs") is not None:
            tokens = part["logprobs"]["content"][: choice.tokens.resumes_at or 0]
            for source in rest.sources:
                added = chat_logprobs(source, wanted.top_logprobs)
                tokens += added["content"] if added else []
            part["logprobs"]["content"] = tokens


def _read_body(raw: bytes) -> tuple[bytes, Body]:
    """The body, and what we read of it; of another dialect, made as vLLM writes it.

    Raises UpstreamProtocol or ValueError for what is no chat completion in any.
    """
    try:
        body = decode_body(raw)
        if not any(is_foreign(part.message, part.finish_reason) for part in body.choices):
            return raw, body
    except msgspec.DecodeError as error:
        failed = said_failure(raw)
        if failed is not None:
            raise UpstreamProtocol(f"the model server failed: {failed}") from error
        try:
            raw = uniform(raw)
        except UpstreamProtocol:
            raise error from None
    else:
        raw = uniform(raw)
    return raw, decode_body(raw)


def _prepend(message: Json, earlier: Json) -> None:
    """What a replayed turn said comes first, as it does in a stream."""
    for name in ("reasoning", "content"):
        said = earlier.get(name)
        if said:
            message[name] = said + (message.get(name) or "")

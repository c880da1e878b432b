"""A turn that is not streamed: the answer arrives whole, is decided on, and becomes one body."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from entrogate.errors import EntrogateError, UpstreamProtocol
from entrogate.serve.choice import Choice
from entrogate.serve.recording import debug_object
from entrogate.serve.streaming import CHAT, COMPLETIONS
from entrogate.serve.turn import Turn
from entrogate.types import Action
from entrogate.upstream.resume import chat_logprobs
from entrogate.wire.chunks import decode_body, decode_completion
from entrogate.wire.strip import strip_body


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client gets.

    ``decision`` is None where no call was proposed, ``weight_version`` where it is not known.
    """

    status: int
    body: bytes
    decision: str | None = None
    weight_version: str | None = None


async def answer_whole(turn: Turn) -> Answer:
    """Serve ``turn`` without streaming. Raises UpstreamError when there is no answer."""
    earlier_text: list[dict[str, Any]] = []
    while True:
        raw_answer = await _ask(turn)
        while raw_answer.status == 404 and turn.fall_back():
            raw_answer = await _ask(turn)
        if raw_answer.status != 200:
            return raw_answer
        raw = raw_answer.body
        _take(turn, raw)
        await turn.collect()
        edits: dict[int, dict[str, Any]] = {}
        replayed: Choice | None = None
        for choice in list(turn.leg.choices.values()):
            if not choice.calls:
                continue
            turn.leg.decided[choice.index] = turn.judge.decide(choice)
            match turn.applied(choice):
                case Action.SUPPRESS:
                    edit = await _resume(turn, choice)
                    if edit is not None:
                        edits[choice.index] = edit
                case Action.REPLAY:
                    replayed = choice
                case _:
                    pass
        if replayed is None:
            break
        earlier_text.append(replayed.message(calls=False))
        await turn.finish_leg(final=False)
        turn.replay_calls(replayed)
    decision = _decision(turn)
    await turn.finish_leg(final=True)
    return Answer(
        status=200,
        body=_body(turn, raw, edits, earlier_text),
        decision=decision,
        weight_version=turn.lease.version,
    )


async def _ask(turn: Turn) -> Answer:
    body = turn.upstream_body()
    if not turn.legs_done:
        turn.gateway.metrics.observe_gateway(time.perf_counter() - turn.received)
    async with turn.asked(CHAT, body) as response:
        return Answer(status=response.status, body=await response.read())


def _take(turn: Turn, raw: bytes) -> None:
    try:
        body = decode_body(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamProtocol(f"the upstream's answer is no chat completion: {error}") from None
    leg = turn.leg
    leg.response_id, leg.created, leg.model = body.id, body.created, body.model
    if body.prompt_token_ids is not None:
        turn.set_prompt(body.prompt_token_ids)
    for part in body.choices:
        turn.new_choice(part.index).add_body(part, raw)
    leg.completion_tokens = body.usage.completion_tokens if body.usage is not None else None


async def _resume(turn: Turn, choice: Choice) -> dict[str, Any] | None:
    """The answer without the call, as fields of the choice; None: the call goes through."""
    position = choice.call_position()
    if position is None or not turn.judge.can_suppress:
        turn.fail_open(choice, "the tool-call token is not among the sampled ids")
        return None
    request = turn.resume_body(choice, position)
    if request is None:
        choice.cut_at_call()
        choice.finish_reason = "length"
        return {"finish_reason": "length", "stop_reason": None}
    try:
        async with turn.asked(COMPLETIONS, orjson.dumps(request)) as response:
            raw = await response.read()
            if response.status != 200:
                raise UpstreamProtocol(f"resuming answered {response.status}: {raw[:300]!r}")
        completion = decode_completion(raw).choices[0]
    except (EntrogateError, msgspec.DecodeError, IndexError) as error:
        turn.fail_open(choice, str(error))
        return None
    choice.cut_at_call()
    choice.add_completion(completion)
    await turn.collect_resumed(choice)
    return {
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "added_logprobs": chat_logprobs(completion, turn.request.wanted.top_logprobs),
    }


def _body(
    turn: Turn, raw: bytes, edits: dict[int, dict[str, Any]], earlier: list[dict[str, Any]]
) -> bytes:
    """The upstream's body with minted ids, and with the decisions carried out."""
    if not turn.capabilities.engine or not turn.request.wanted.reasoning:
        raw = strip_body(raw, turn.request.wanted)
    for choice in turn.leg.choices.values():
        for call in choice.calls:
            if call.upstream_id:
                old, new = call.upstream_id.encode(), call.call_id.encode()
                raw = raw.replace(b'"id":"' + old + b'"', b'"id":"' + new + b'"', 1)
    if not edits and not earlier and not turn.debug:
        return raw
    answer = orjson.loads(raw)
    for part in answer["choices"]:
        edit = edits.get(part["index"])
        if edit is not None:
            _apply(turn, turn.leg.choices[part["index"]], part, edit)
        for message in reversed(earlier):
            _prepend(part["message"], message)
    if edits or earlier:
        records = turn.records
        sampled = sum(len(record.capture) for record in records)
        prompt = len(records[0].prompt_token_ids)
        answer["usage"] |= {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
        }
    if turn.debug:
        answer["entrogate"] = debug_object(turn)
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _apply(turn: Turn, choice: Choice, part: dict[str, Any], edit: dict[str, Any]) -> None:
    wanted = turn.request.wanted
    part["message"].pop("tool_calls", None)  # vLLM leaves an empty list out
    part["message"]["content"] = "".join(choice.content)
    part["finish_reason"], part["stop_reason"] = edit["finish_reason"], edit["stop_reason"]
    if wanted.token_ids:
        part["token_ids"] = choice.token_ids
    added = edit.get("added_logprobs")
    if wanted.logprobs and part.get("logprobs") is not None:
        kept = choice.resumes_at or 0
        tokens = part["logprobs"]["content"][:kept]
        part["logprobs"]["content"] = tokens + (added["content"] if added else [])


def _prepend(message: dict[str, Any], earlier: dict[str, Any]) -> None:
    """What a replayed turn said comes first, as it does in a stream."""
    for name in ("reasoning", "content"):
        said = earlier.get(name)
        if said:
            message[name] = said + (message.get(name) or "")


def _decision(turn: Turn) -> str | None:
    applied = [
        record.decision.applied for records in turn.leg.decided.values() for record in records
    ]
    replays = [Action.REPLAY] * turn.legs_done
    return ",".join([*replays, *applied]) or None

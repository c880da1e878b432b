"""What the model would say without a call, decoded beside a turn: for drafts and shadow answers.

Where one token opens a call, the turn goes on from its own token ids with that token masked
(`upstream.resume`), which is what a suppression sends. Where none does, the model is asked again
without its tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from entrogate.engine.frames import REQUEST_ARGUMENT
from entrogate.entropy.statistics import draft_stats
from entrogate.errors import UpstreamProtocol
from entrogate.label.shadows import is_whole
from entrogate.turn.ids import mint_answer
from entrogate.turn.parts import Parts
from entrogate.turn.tokens import ChoiceTokens
from entrogate.types import Capture, SegmentStats
from entrogate.upstream.capabilities import Capabilities, Way
from entrogate.upstream.captures import RequestCapture
from entrogate.upstream.resume import resume_request
from entrogate.wire.body import to_json
from entrogate.wire.chunks import CompletionChoice, Usage, decode_body, decode_completion
from entrogate.wire.request import ChatRequest

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_REQUEST_ID_HEADER = "x-request-id"
_MOST_DETAIL = 300
_HALF_CHARACTER = "�"  # the text of a token that is only a part of a character
# Parameters that depend on the whole answer: a request for the rest would restart them.
_OVER_ALL = ("stop", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request and the token ids before its call, from which an answer is decoded without it."""

    request: ChatRequest  # for the weights of the turn
    capabilities: Capabilities
    prompt_token_ids: Sequence[int]
    kept_token_ids: Sequence[int]
    headers: Mapping[str, str]
    seed: int | None = None  # instead of the request's


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """The beginning of an answer without its call, or all of it (`ended`)."""

    way: Way
    text: str
    finish_reason: str | None
    tokens: ChoiceTokens  # the sampled tokens of this part alone
    part: CompletionChoice  # the same as a part of a resumed answer

    @property
    def ended(self) -> bool:
        """Is the answer complete?"""
        return is_whole(self.finish_reason)

    def capture(self) -> Capture:
        """What is known of its tokens; ids alone where the entropies make no sense."""
        try:
            return self.tokens.capture()
        except ValueError:
            self.tokens.mark("capture_fault")
            return self.tokens.unknown_capture()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The draft of one choice. ``measured`` is None where its capture has a gap."""

    without: Without
    measured: Capture | None

    @property
    def whole(self) -> bool:
        """Is it the whole answer?"""
        return self.without.ended or self.without.way is Way.NO_TOOLS

    def stats(self, n_tokens: int) -> SegmentStats | None:
        """Statistics of its first tokens; None where they were not measured."""
        if self.measured is None:
            return None
        return draft_stats(self.measured, n_tokens, ended=self.without.ended)

    def begins_answer(self, body: dict[str, Any]) -> bool:
        """Can the answer to the request ``body`` go on from here, token by token?"""
        if self.whole:
            return True
        return not any(body.get(name) for name in _OVER_ALL) and not self.without.text.endswith(
            _HALF_CHARACTER
        )


async def decode_without(parts: Parts, asked: Asked, max_tokens: int | None) -> Without | None:
    """Decode up to ``max_tokens`` of the answer (None: to its end); None if no token fits.

    Raises UpstreamError where the model server does not answer as it should.
    """
    tokens = ChoiceTokens(asked.capabilities, None)
    capture = None
    if parts.channel is not None and asked.capabilities.engine:
        capture = parts.channel.follow()
    try:
        if asked.capabilities.way is Way.MASK:
            return await _masked(parts, asked, max_tokens, tokens, capture)
        return await _without_tools(parts, asked, max_tokens, tokens, capture)
    finally:
        if capture is not None:
            capture.close()


async def _masked(
    parts: Parts,
    asked: Asked,
    max_tokens: int | None,
    tokens: ChoiceTokens,
    capture: RequestCapture | None,
) -> Without | None:
    body = resume_request(
        asked.request,
        asked.capabilities,
        prompt_token_ids=asked.prompt_token_ids,
        kept_token_ids=asked.kept_token_ids,
        seed=asked.seed,
        arguments=None if capture is None else arguments_of(parts, asked.capabilities, capture),
    )
    if body is None:
        return None
    body["stream"] = False
    if max_tokens is not None:
        body["max_tokens"] = min(max_tokens, body["max_tokens"])
    if "min_tokens" in body:
        body["min_tokens"] = min(body["min_tokens"], body["max_tokens"])
    raw = await _post(parts, _COMPLETIONS, body, asked.headers)
    try:
        answer = decode_completion(raw)
        choice = answer.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise UpstreamProtocol(f"the answer without the call is no completion: {error}") from None
    if capture is None:
        tokens.add_completion(choice)
    else:
        await take_captured(tokens, capture, _counted(answer.usage))
    return Without(
        way=Way.MASK,
        text=choice.text,
        finish_reason=choice.finish_reason,
        tokens=tokens,
        part=choice,
    )


async def _without_tools(
    parts: Parts,
    asked: Asked,
    max_tokens: int | None,
    tokens: ChoiceTokens,
    capture: RequestCapture | None,
) -> Without | None:
    request = asked.request.without_tools(max_tokens)
    if capture is not None:
        body = request.upstream_captured(arguments_of(parts, asked.capabilities, capture))
    else:
        found = asked.capabilities
        top = found.top_logprobs if found.token_ids else 0
        body = request.upstream(top, token_ids=found.token_ids)
    raw = await _post(parts, _CHAT, body, asked.headers)
    try:
        answer = decode_body(raw)
        choice = answer.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise UpstreamProtocol(f"the answer without tools is no chat completion: {error}") from None
    if capture is None:
        tokens.add_chat(choice.token_ids, choice.logprobs, raw)
    else:
        await take_captured(tokens, capture, _counted(answer.usage))
    text, finish = choice.message.content or "", choice.finish_reason or None
    return Without(
        way=Way.NO_TOOLS,
        text=text,
        finish_reason=finish,
        tokens=tokens,
        part=CompletionChoice(text=text, finish_reason=finish, token_ids=choice.token_ids),
    )


async def _post(parts: Parts, path: str, body: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    sent = {**headers, _REQUEST_ID_HEADER: mint_answer()}
    async with parts.client.request("POST", path, body=to_json(body), headers=sent) as response:
        if response.status != 200:
            said = (await response.read())[:_MOST_DETAIL].decode(errors="replace")
            raise UpstreamProtocol(f"going on without the call answered {response.status}: {said}")
        return await response.read()


def arguments_of(
    parts: Parts, capabilities: Capabilities, capture: RequestCapture
) -> dict[str, Any]:
    """How a request names itself to the engine, so that what is sampled of it arrives here."""
    if parts.channel is None:
        raise RuntimeError("there is no channel to capture by")
    return {REQUEST_ARGUMENT: parts.channel.argument(capture, capabilities.tool_call_token_id)}


async def take_captured(
    tokens: ChoiceTokens, capture: RequestCapture, n_counted: int | None = None
) -> None:
    """Wait for what the engine captured of a request with one choice, and take it into ``tokens``.

    ``n_counted`` is the server's own count where it is known.
    """
    await capture.complete(1)
    captured = capture.choices.get(0)
    if captured is None:
        tokens.mark("capture_incomplete")
    else:
        tokens.take_captured(captured, n_counted)


def _counted(usage: Usage | None) -> int | None:
    return None if usage is None else usage.completion_tokens

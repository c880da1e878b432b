"""vLLM 0.32's answers, byte for byte, rendered from scripted turns.

Field order, nulls and the two ways of writing JSON (pydantic in streams, ``json.dumps`` in bodies)
follow ``entrypoints/openai/chat_completion/{protocol,serving}.py`` and their siblings for
completions; ``tests/integration/test_dialect.py`` compares with answers recorded from a real one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrogate_lab.bench.script import END, Token, Turn, Vocabulary

FINGERPRINT = "vllm-0.32.0-84a51aef"
DONE = b"data: [DONE]\n\n"
MAX_LOGPROBS = 20
# Stands where a response's own id and its calls' ids go; replaced when it is sent.
ID, CALL_ID = "00000000000000ID", "0000000000CALL%02d"
_UNSET: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks to be returned, and what is withheld by a fault."""

    stream: bool
    usage: bool
    continuous_usage: bool
    logprobs: bool
    top_logprobs: int
    logprob_token_ids: tuple[int, ...]
    token_ids: bool
    tokens_as_ids: bool
    forced_call: bool  # tool_choice: required or a named tool
    named_call: bool

    @classmethod
    def of(cls, body: Mapping[str, Any], *, chat: bool) -> Wish:
        """From a request's body: a chat completion's, or that of ``/v1/completions``."""
        options = body.get("stream_options") or _UNSET
        logprobs = body.get("logprobs")
        choice = body.get("tool_choice")
        return cls(
            stream=bool(body.get("stream")),
            usage=bool(options.get("include_usage")),
            continuous_usage=bool(options.get("continuous_usage_stats")),
            logprobs=bool(logprobs) if chat else logprobs is not None,
            top_logprobs=(body.get("top_logprobs") or 0) if chat else (logprobs or 0),
            logprob_token_ids=tuple(body.get("logprob_token_ids") or ()),
            token_ids=bool(body.get("return_token_ids")),
            tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
            forced_call=choice == "required" or isinstance(choice, dict),
            named_call=isinstance(choice, dict),
        )


class Renderer:
    """Renders one request's answer. Ids are placeholders: see ``fresh_ids``."""

    def __init__(self, wish: Wish, vocabulary: Vocabulary, *, model: str, prompt: Sequence[int]):
        self._wish = wish
        self._vocabulary = vocabulary
        self._model = model
        self._prompt = list(prompt)
        self._created = int(time.time())

    def chat_events(self, turns: Sequence[Turn]) -> list[bytes]:
        """The events of a streamed chat, choices interleaved by token, ``[DONE]`` included."""
        wish = self._wish
        events: list[bytes] = []
        prompt_ids = self._prompt if wish.token_ids else None
        for index in range(len(turns)):
            choice = {"index": index, "delta": {"role": "assistant", "content": ""}}
            choice |= {"logprobs": None, "finish_reason": None}
            usage = self._usage(0, 0) if wish.continuous_usage else None
            tail = {"prompt_token_ids": prompt_ids, "prompt_text": None}
            events.append(self._chunk("chat", choice, usage=usage, tail=tail))
        for position in range(max(len(turn.tokens) for turn in turns)):
            for index, turn in enumerate(turns):
                if position < len(turn.tokens):
                    events += self._chat_token(index, turn, position)
        if wish.usage:
            events.append(self._usage_event("chat", turns))
        return [*events, DONE]

    def _chat_token(self, index: int, turn: Turn, position: int) -> list[bytes]:
        wish, token = self._wish, turn.tokens[position]
        last = position == len(turn.tokens) - 1
        delta = token.delta
        if delta is None and not (last or wish.logprobs or wish.token_ids):
            return []
        logprobs = self._chat_logprobs([token]) if wish.logprobs else None
        choice: dict[str, Any] = {"index": index, "delta": _with_call_id(delta or {}, index)}
        choice |= {"logprobs": logprobs, "finish_reason": None}
        tail: dict[str, Any] = {}
        if last:
            calls = any("tool_calls" in (t.delta or _UNSET) for t in turn.tokens)
            calls = calls and not wish.named_call and turn.finish_reason == "stop"
            choice["finish_reason"] = "tool_calls" if calls else turn.finish_reason
            choice["stop_reason"] = None
            if not wish.usage:
                tail["system_fingerprint"] = FINGERPRINT
        choice["token_ids"] = [token.token_id] if wish.token_ids else None
        reasoning = sum("reasoning" in (t.delta or _UNSET) for t in turn.tokens[: position + 1])
        usage = self._usage(position + 1, reasoning) if wish.continuous_usage else None
        return [self._chunk("chat", choice, usage=usage, tail=tail)]

    def chat_body(self, turns: Sequence[Turn]) -> bytes:
        """The JSON of a chat that is not streamed."""
        wish = self._wish
        choices: list[dict[str, Any]] = []
        for index, turn in enumerate(turns):
            message, called = _message(turn, index, forced=wish.forced_call)
            finish = turn.finish_reason
            if called and not wish.named_call:
                finish = "tool_calls"
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._chat_logprobs(turn.tokens) if wish.logprobs else None,
                    "finish_reason": finish,
                    "stop_reason": None,
                    "token_ids": [t.token_id for t in turn.tokens] if wish.token_ids else None,
                    "routed_experts": None,
                }
            )
        body = {
            "id": f"chatcmpl-{ID}",
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._body_usage(turns, reasoning=True),
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt if wish.token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return compact(body)

    def completion_events(self, turns: Sequence[Turn]) -> list[bytes]:
        """The events of a streamed completion, ``[DONE]`` included."""
        wish = self._wish
        events: list[bytes] = []
        offsets = [0] * len(turns)
        for position in range(max(len(turn.tokens) for turn in turns)):
            for index, turn in enumerate(turns):
                if position >= len(turn.tokens):
                    continue
                token = turn.tokens[position]
                last = position == len(turn.tokens) - 1
                logprobs = None
                if wish.logprobs:
                    logprobs = self._completion_logprobs([token], offsets[index])
                    offsets[index] += len(self._name(token.token_id, token.text))
                choice: dict[str, Any] = {
                    "index": index,
                    "text": "" if token.text == END else token.text,
                    "logprobs": logprobs,
                    "finish_reason": turn.finish_reason if last else None,
                    "stop_reason": None,
                    "prompt_token_ids": self._prompt if wish.token_ids and not position else None,
                    "token_ids": [token.token_id] if wish.token_ids else None,
                }
                stamped = last and not wish.usage
                tail = {"system_fingerprint": FINGERPRINT} if stamped else {}
                events.append(self._chunk("text", choice, usage=None, tail=tail))
        if wish.usage:
            events.append(self._usage_event("text", turns))
        return [*events, DONE]

    def completion_body(self, turns: Sequence[Turn]) -> bytes:
        """The JSON of a completion that is not streamed."""
        wish = self._wish
        choices = [
            {
                "index": index,
                "text": "".join("" if t.text == END else t.text for t in turn.tokens),
                "logprobs": self._completion_logprobs(turn.tokens, 0) if wish.logprobs else None,
                "finish_reason": turn.finish_reason,
                "stop_reason": None,
                "token_ids": [t.token_id for t in turn.tokens] if wish.token_ids else None,
                "prompt_logprobs": None,
                "prompt_token_ids": self._prompt if wish.token_ids else None,
                "routed_experts": None,
            }
            for index, turn in enumerate(turns)
        ]
        body = {
            "id": f"cmpl-{ID}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._body_usage(turns, reasoning=False),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return compact(body)

    def _chunk(
        self,
        kind: str,
        choice: dict[str, Any] | None,
        *,
        usage: dict[str, Any] | None,
        tail: dict[str, Any],
    ) -> bytes:
        chat = kind == "chat"
        payload: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{ID}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [] if choice is None else [choice],
        }
        if usage is not None:
            payload["usage"] = usage
        return b"data: " + compact(payload | tail) + b"\n\n"

    def _usage_event(self, kind: str, turns: Sequence[Turn]) -> bytes:
        sampled, reasoning = _counts(turns)
        usage = self._usage(sampled, reasoning if kind == "chat" else None)
        tail = {"system_fingerprint": FINGERPRINT}
        return self._chunk(kind, None, usage=usage, tail=tail)

    def _usage(self, sampled: int, reasoning: int | None) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": len(self._prompt),
            "total_tokens": len(self._prompt) + sampled,
            "completion_tokens": sampled,
        }
        if reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage

    def _body_usage(self, turns: Sequence[Turn], *, reasoning: bool) -> dict[str, Any]:
        sampled, thought = _counts(turns)
        details = {"reasoning_tokens": thought} if reasoning else None
        nulls = {"prompt_tokens_details": None, "completion_tokens_details": details}
        return self._usage(sampled, None) | nulls

    def _name(self, token_id: int, text: str) -> str:
        return f"token_id:{token_id}" if self._wish.tokens_as_ids else text

    def _top(self, token: Token, keep: int) -> list[tuple[int, str, float]]:
        if not (chosen := self._wish.logprob_token_ids):
            # The engine returns the best k and, if it is not one of them, the sampled token.
            best = self._wish.top_logprobs
            better = sum(logprob > token.logprob for _, _, logprob in token.top)
            return list(token.top[: min(keep, best if better < best else best + 1)])
        known = {token_id: logprob for token_id, _, logprob in token.top}
        rest = [(i, self._vocabulary.text(i), known.get(i, -15.0)) for i in chosen]
        return [token.top[0], *(t for t in rest if t[0] != token.token_id)]

    def _chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        def entry(token_id: int, text: str, logprob: float) -> dict[str, Any]:
            name = self._name(token_id, text)
            return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

        content: list[dict[str, Any]] = []
        for token in tokens:
            top = self._top(token, self._wish.top_logprobs)
            head = entry(token.token_id, token.text, token.logprob)
            head["bytes"] = list(token.text.encode())
            content.append(head | {"top_logprobs": [entry(*t) for t in top]})
        return {"content": content}

    def _completion_logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        names = [self._name(t.token_id, t.text) for t in tokens]
        offsets: list[int] = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        return {
            "text_offset": offsets,
            "token_logprobs": [t.logprob for t in tokens],
            "tokens": names,
            "top_logprobs": [
                {
                    self._name(i, text): lp
                    for i, text, lp in self._top(t, self._wish.top_logprobs + 1)
                }
                for t in tokens
            ],
        }


def fresh_ids(rendered: Sequence[bytes], request_id: str | None) -> list[bytes]:
    """Put a response id (from ``x-request-id``, as vLLM does) and new call ids in their places."""
    own = request_id or secrets.token_hex(8)
    calls = secrets.token_hex(8)
    found: list[bytes] = []
    for part in rendered:
        sent = part.replace(ID.encode(), own.encode(), 1)
        if b"0000000000CALL" in sent:
            sent = sent.replace(b"0000000000CALL", calls[:14].encode())
        found.append(sent)
    return found


def compact(value: object) -> bytes:
    """JSON as Starlette's JSONResponse writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def error_body(message: str, kind: str, code: int, param: str | None = None) -> bytes:
    """An error in vLLM's envelope: the code is the HTTP status."""
    return compact({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(message: str, kind: str, code: int, param: str | None = None) -> bytes:
    """An error inside a stream, which vLLM writes with spaces."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def _counts(turns: Sequence[Turn]) -> tuple[int, int]:
    tokens = [t for turn in turns for t in turn.tokens]
    return len(tokens), sum("reasoning" in (t.delta or _UNSET) for t in tokens)


def _with_call_id(delta: dict[str, Any], choice: int) -> dict[str, Any]:
    calls = delta.get("tool_calls")
    if not calls or "id" not in calls[0]:
        return delta
    call = dict(calls[0])
    call["id"] = _call_id(choice, call["index"])
    return {**delta, "tool_calls": [call]}


def _call_id(choice: int, index: int) -> str:
    return "chatcmpl-tool-" + CALL_ID % (choice * 10 + index)


def _message(turn: Turn, choice: int, *, forced: bool) -> tuple[dict[str, Any], bool]:
    """The message of a JSON answer, and whether it carries tool calls."""
    reasoning = "".join((t.delta or _UNSET).get("reasoning") or "" for t in turn.tokens)
    content = "".join((t.delta or _UNSET).get("content") or "" for t in turn.tokens)
    parts = [c for t in turn.tokens for c in (t.delta or _UNSET).get("tool_calls", ())]
    calls = [
        {
            "id": _call_id(choice, part["index"]),
            "type": "function",
            "function": {
                "name": part["function"]["name"],
                "arguments": "".join(
                    p["function"].get("arguments", "") for p in parts if p["index"] == part["index"]
                ),
            },
        }
        for part in parts
        if "id" in part
    ]
    bare = not content.strip() if calls else not content
    message: dict[str, Any] = {
        "role": "assistant",
        "content": ("" if forced else None) if bare else content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if calls:
        message["tool_calls"] = calls
    message["reasoning"] = reasoning or None
    return message, bool(calls)

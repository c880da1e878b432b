"""What the scripted upstream says: a toy vocabulary, and turns written as JSON in the prompt.

A test or a benchmark puts ``script:[…]`` into the last user message, one object per assistant turn
(see Step). The n-th answer to that message follows the n-th step; after the last one comes a short
text. Token ids are reversible, so ``/v1/completions`` can go on from any prefix of a turn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

import numpy as np

START, END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
_SPECIALS = (EOS, START, END, THINK, THINK_END, CALL, CALL_END)
_PIECES = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>|</?think>|</?tool_call>|</?tool_response>"
    r"|\n| ?[^\W\d_]+| ?\d| ?[\"{}\[\]:,]+|.",
    re.DOTALL,
)
_MARKER = "script:"
_ALTERNATIVES = 40

Fault = Literal[
    "error",  # an HTTP error before the first byte, in vLLM's envelope
    "cut",  # the connection breaks after `at` events
    "end",  # the stream ends after `at` events, without [DONE]
    "sse_error",  # an error event after `at` events, then [DONE], as vLLM does
    "stall",  # nothing more comes after `at` events
    "garbage",  # what comes is not JSON
    "no_logprobs",  # log-probs are null although asked for
    "no_token_ids",  # token ids are null although asked for
    "plain_error",  # instead of an answer: a text, as a server says it that has failed altogether
    "lost_token",  # one event in the middle is missing
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call: its name and its arguments as the model writes them."""

    name: str
    arguments: str

    @property
    def text(self) -> str:
        """The JSON between the call markers."""
        return f'{{"name": "{self.name}", "arguments": {self.arguments}}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One assistant turn of a script.

    ``confidence`` is the top-1 probability of every reasoning token: it sets the entropy that a
    gate sees. ``masked`` is said instead of the calls when their opening token is masked.
    ``tokens`` > 0 fills the content up to that many tokens, end of turn included.
    """

    reasoning: str | None = None
    content: str = ""
    calls: tuple[Call, ...] = ()
    masked: str = "I answer without the tool."
    confidence: float = 0.9
    tokens: int = 0
    off_top: bool = False  # every fourth token lies outside the top k
    fault: Fault | None = None
    at: int = 3  # events before the fault
    status: int = 500  # of the fault `error`
    delay: float = 0.0  # seconds between events, or before a JSON body

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Step:
        """A step from JSON. Raises ValueError for a field that it does not have."""
        if unknown := raw.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"a step has no field {sorted(unknown)}")
        values = dict(raw)
        values["calls"] = tuple(
            Call(name=c["name"], arguments=_arguments(c.get("arguments", {})))
            for c in cast("list[dict[str, Any]]", raw.get("calls", []))
        )
        return cls(**values)

    def text(self, *, masked: bool) -> str:
        """The turn as the model writes it, markers included, end of turn excluded."""
        head = "" if self.reasoning is None else f"{THINK}\n{self.reasoning}\n{THINK_END}\n\n"
        head += self.content + " word" * max(0, self.tokens - 1 - len(pieces(self.content)))
        if not self.calls:
            return head
        if masked:
            return head + self.masked
        between = "\n" if self.content else ""
        return head + between + "\n".join(f"{CALL}\n{c.text}\n{CALL_END}" for c in self.calls)


Choices = tuple[Step, ...]
_AFTERWARDS = (Step(content="The answer is 42."),)


def script(*steps: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The user message that selects ``steps``; a list among them is one step for each choice."""
    return _MARKER + json.dumps(steps)


def parse_script(text: str) -> tuple[Choices, ...]:
    """The steps written in a message; a plain text of 16 tokens where there is none."""
    start = text.rfind(_MARKER)
    if start < 0:
        return ((Step(tokens=16),),)
    raw, _ = json.JSONDecoder().raw_decode(text, start + len(_MARKER))
    return tuple(
        tuple(Step.parse(s) for s in cast("list[Any]", step if isinstance(step, list) else [step]))
        for step in cast("list[Any]", raw)
    )


def choices_of(steps: tuple[Choices, ...], index: int) -> Choices:
    """The alternatives of turn ``index``: one step for each choice, taken in turn."""
    return steps[index] if index < len(steps) else _AFTERWARDS


def pieces(text: str) -> list[str]:
    """Cut text into the pieces that are the tokens of the toy vocabulary."""
    return _PIECES.findall(text)


class Vocabulary:
    """Token ids of pieces, given out as pieces are seen; the markers have the first ones."""

    def __init__(self, size: int = 151_936) -> None:
        self.size = size
        self._texts: list[str] = []
        self._ids: dict[str, int] = {}
        for text in (*_SPECIALS, *(f" alt{i}" for i in range(_ALTERNATIVES))):
            self.id(text)
        self.alternatives = tuple(
            (self.id(t), t) for t in (CALL, *(f" alt{i}" for i in range(_ALTERNATIVES)))
        )

    def id(self, piece: str) -> int:
        """The id of a piece; a new piece takes the next one."""
        found = self._ids.get(piece)
        if found is None:
            found = self._ids[piece] = len(self._texts)
            self._texts.append(piece)
        return found

    def text(self, token_id: int) -> str:
        """The piece of an id; empty where the id was never given out."""
        return self._texts[token_id] if 0 <= token_id < len(self._texts) else ""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, cut into pieces by `pieces`."""
        return [self.id(piece) for piece in pieces(text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, markers included."""
        return "".join(self.text(i) for i in token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A sampled token. ``top`` is in vLLM's order: the sampled one, then the best without it.

    ``delta`` is what the reasoning and tool parsers make of it; None where they say nothing.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]
    delta: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The sampled tokens of one choice; ``finish_reason`` is the engine's (stop, length)."""

    tokens: tuple[Token, ...]
    finish_reason: str
    step: Step = field(default_factory=Step)


def generate(
    step: Step,
    vocabulary: Vocabulary,
    *,
    parse_calls: bool,
    masked: bool = False,
    partial: str = "",
    limit: int | None = None,
) -> Turn:
    """The tokens of ``step``, going on after ``partial`` and cut at ``limit`` tokens.

    ``parse_calls``: the tool parser is active; ``masked``: the tool-call token is.
    """
    text = step.text(masked=masked)
    rest = _rest(text, partial, step, masked=masked)
    tokens: list[Token] = []
    parser = _Parser(parse_calls=parse_calls, calls=step.calls)
    for piece in pieces(rest):
        in_reasoning = parser.in_reasoning
        delta = parser.delta(piece)
        confidence = step.confidence if in_reasoning else 0.98
        far = step.off_top and len(tokens) % 4 == 3
        tokens.append(_token(vocabulary, piece, delta, confidence, far=far))
    tokens.append(_token(vocabulary, END, {}, 0.98, far=False))
    if limit is not None and limit < len(tokens):
        return Turn(tokens=tuple(tokens[:limit]), finish_reason="length", step=step)
    return Turn(tokens=tuple(tokens), finish_reason="stop", step=step)


def _arguments(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rest(text: str, partial: str, step: Step, *, masked: bool) -> str:
    if text.startswith(partial):
        return text[len(partial) :]
    if masked and CALL not in partial:
        return step.masked
    return ""  # a model that has said all it had to say ends its turn


def _token(
    vocabulary: Vocabulary,
    piece: str,
    delta: dict[str, Any] | None,
    confidence: float,
    *,
    far: bool,
) -> Token:
    sampled = vocabulary.id(piece)
    others = [(i, t) for i, t in vocabulary.alternatives if i != sampled]
    spread = 1.0 - confidence
    best = [(i, t, _log(spread * 0.5 ** (j + 1))) for j, (i, t) in enumerate(others)]
    if far:
        best = [(*others[0], _log(confidence)), *((i, t, lp) for i, t, lp in best[1:])]
        logprob = _log(1e-12)
    else:
        logprob = _log(confidence)
    return Token(
        token_id=sampled,
        text=piece,
        logprob=logprob,
        top=((sampled, piece, logprob), *best),
        delta=delta,
    )


def _log(probability: float) -> float:
    return float(np.float32(math.log(max(probability, 1e-30))))


class _Parser:
    """What vLLM's qwen3 reasoning parser and hermes tool parser stream for each token."""

    def __init__(self, *, parse_calls: bool, calls: tuple[Call, ...]) -> None:
        self.in_reasoning = False
        self._parse_calls = parse_calls
        self._calls = calls
        self._index = -1
        self._position: int | None = None  # in the text of the call; None outside of one

    def delta(self, piece: str) -> dict[str, Any] | None:
        if piece in (THINK, THINK_END):
            self.in_reasoning = piece == THINK
            return None
        if self.in_reasoning:
            return {"reasoning": piece}
        if not self._parse_calls:
            return {"content": piece}
        if piece == CALL:
            self._index += 1
            self._position = -1  # of the line break before the JSON
            return None
        if piece == CALL_END:
            self._position = None
            return None
        if self._position is not None:
            return self._call_delta(piece)
        return {"content": piece} if self._index < 0 else None

    def _call_delta(self, piece: str) -> dict[str, Any] | None:
        call = self._calls[self._index]
        start = cast("int", self._position)
        stop = self._position = start + len(piece)
        name_end = len('{"name": "') + len(call.name)
        first = call.text.index(call.arguments, name_end)
        if start <= name_end < stop:
            head = {"id": None, "type": "function", "index": self._index}
            return {"content": None, "tool_calls": [{**head, "function": {"name": call.name}}]}
        part = call.text[max(start, first) : min(stop, len(call.text) - 1)]
        if start < 0 or not part or stop <= first:
            return None
        function = {"arguments": part}
        return {"content": None, "tool_calls": [{"index": self._index, "function": function}]}

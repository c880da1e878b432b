"""The requests that are recorded: doors × what the model does × what the gate does about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.integration.golden.shapes import SHAPES
from tests.integration.harness import SURE, UNSURE

_LOOKUP: dict[str, Any] = {"lookup": None}
# Policies by name; None is the shipped policy `observe`.
GATEWAYS: dict[str, dict[str, Any] | None] = {
    "observe": None,
    "watching": {"mode": "observe", "defaults": {"threshold": 9.0}, "tools": _LOOKUP},
    "enforce": {"defaults": {"threshold": 1.5}, "tools": _LOOKUP},
    "replay": {"defaults": {"on_repeat": "replay"}, "tools": _LOOKUP},
    "explore": {
        "mode": "explore",
        "defaults": {"threshold": 1.5},
        "tools": _LOOKUP,
        "explore": {"epsilon": 0.3},
    },
}
BOTH, WHOLE, STREAMED = (False, True), (False,), (True,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One conversation: a first request and one more for each of ``results``."""

    name: str
    steps: tuple[Any, ...] = ()
    shape: str | None = None
    door: str = "chat"
    gateway: str = "observe"
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    results: tuple[str, ...] = ()
    tools: bool = True
    streamed: tuple[bool, ...] = BOTH
    stored: bool = True  # whether the record of the turn belongs to the recording
    refuses_to_resume: bool = False


def _thinks(confidence: float = 0.9, content: str = "", masked: str = "Berlin.") -> dict[str, Any]:
    said = {"reasoning": "who is it now", "confidence": confidence, "masked": masked}
    return {**said, "content": content} if content else said


def _calls(*arguments: Any, name: str = "lookup", **how: Any) -> dict[str, Any]:
    calls = [
        {"name": name, "arguments": a if isinstance(a, str) and a[:1] == "{" else {"entity": a}}
        for a in arguments
    ]
    return {**_thinks(**how), "calls": calls}


_TEXT = {"content": "It is 42, é 漢."}
_MIXED = _calls("Ada", confidence=SURE)
_MIXED["calls"] = [*_MIXED["calls"], {"name": "send_mail", "arguments": {"entity": "Bo"}}]
_BAD = _calls('{"entity": Ada', confidence=SURE)
_CALL = _calls("Ada")

_ANSWERS = (
    Case(name="text", steps=(_TEXT,)),
    Case(name="text without tools", steps=(_TEXT,), tools=False),
    Case(name="reasoned text", steps=({**_TEXT, "reasoning": "six times seven"},)),
    Case(name="a call", steps=(_CALL,)),
    Case(name="a call after text", steps=(_calls("Ada", content="Let me see."),)),
    Case(name="parallel calls", steps=(_calls("Ada", "Bo"),)),
    Case(name="a call that is no JSON", steps=(_BAD,)),
    Case(name="a call and its result", steps=(_CALL, _TEXT), results=("Ada lives in Berlin",)),
)
_DECISIONS = (
    Case(name="observed only", steps=(_CALL,), gateway="watching", streamed=STREAMED),
    Case(name="allowed", steps=(_calls("Ada", confidence=UNSURE),), gateway="enforce"),
    Case(name="suppressed", steps=(_calls("Ada", confidence=SURE),), gateway="enforce"),
    Case(
        name="suppressed after text",
        steps=(_calls("Ada", confidence=SURE, content="Let me see."),),
        gateway="enforce",
    ),
    Case(name="parallel suppressed", steps=(_calls("A", "B", confidence=SURE),), gateway="enforce"),
    Case(name="one of two may not be suppressed", steps=(_MIXED,), gateway="enforce"),
    Case(name="no JSON, certain", steps=(_BAD,), gateway="enforce"),
    Case(
        name="suppressed but the resume is refused",
        steps=(_calls("Ada", confidence=SURE),),
        gateway="enforce",
        refuses_to_resume=True,
    ),
    Case(
        name="suppressed after a result",
        steps=(_calls("Ada", confidence=UNSURE), _calls("Bo", confidence=SURE)),
        gateway="enforce",
        results=("found",),
    ),
    Case(name="replayed", steps=(_CALL, _CALL, _TEXT), gateway="replay", results=("in Berlin",)),
    Case(
        name="replayed until it has to answer",
        steps=tuple([_CALL] * 8),
        gateway="replay",
        results=("found",),
        streamed=STREAMED,
    ),
    Case(
        name="explored: suppressed",
        steps=(_calls("Ada", confidence=UNSURE),),
        gateway="explore",
    ),
    Case(name="explored: allowed", steps=(_calls("Ada", confidence=SURE),), gateway="explore"),
)
_FAULTS = (
    *(
        Case(name=f"refused with {status}", steps=({"fault": "error", "status": status},))
        for status in (400, 404, 429, 500, 503)
    ),
    Case(name="a plain error", steps=({"fault": "plain_error", "status": 502},)),
    *(
        Case(name=f"{fault} in the middle", steps=({**_TEXT, "fault": fault, "at": 3},))
        for fault in ("cut", "end", "sse_error", "garbage")
    ),
    *(
        Case(name=f"{fault} within a call", steps=({**_CALL, "fault": fault, "at": 14},))
        for fault in ("cut", "end", "sse_error", "garbage")
    ),
    *(
        Case(name=fault, steps=({**_CALL, "fault": fault},))
        for fault in ("no_logprobs", "no_token_ids", "lost_token")
    ),
    Case(name="an unknown model", steps=(_TEXT,), fields={"model": "no-such-model"}),
)
_SHAPES = tuple(Case(name=name, shape=name) for name in SHAPES)

_PLAIN = {"content": "Hi."}
_SHORT = {"reasoning": "so", "content": "Hi."}
_OPTIONS = (
    ("logprobs", {"logprobs": True}),
    ("two top log-probs", {"logprobs": True, "top_logprobs": 2}),
    ("token ids", {"return_token_ids": True}),
    ("ids and log-probs", {"return_token_ids": True, "logprobs": True, "top_logprobs": 1}),
    ("at the length limit", {"max_tokens": 3}),
    ("two choices", {"n": 2, "temperature": 1.0}),
    ("without reasoning", {"include_reasoning": False}),
    ("hidden reasoning and ids", {"include_reasoning": False, "return_token_ids": True}),
    ("metadata and other fields", {"metadata": {"customer": "7"}, "seed": 7, "new_field": [1]}),
    ("xargs", {"vllm_xargs": {"a": 1}, "logit_bias": {"5": 1.5}}),
)
_STREAM_OPTIONS = (
    ("usage", {"stream_options": {"include_usage": True}}),
    (
        "usage in every event",
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    ("usage unwanted", {"stream_options": {"include_usage": False}}),
)
_CERTAIN = _calls("A", confidence=SURE)
_CHAT_ONLY = (
    *(Case(name=name, steps=(_SHORT,), fields=fields) for name, fields in _OPTIONS),
    *(
        Case(name=name, steps=(_SHORT,), fields=fields, streamed=STREAMED)
        for name, fields in _STREAM_OPTIONS
    ),
    Case(name="debug", steps=(_CALL,), headers={"x-entrogate-debug": "1"}),
    Case(
        name="a task and a trajectory",
        steps=(_PLAIN,),
        headers={"x-entrogate-task-id": "task", "x-entrogate-trajectory-id": "mine"},
    ),
    Case(
        name="headers that go on, or not",
        steps=(_PLAIN,),
        headers={
            "x-request-id": "mine-17",
            "authorization": "Bearer a-key",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-priority": "7",
            "cookie": "a=b",
        },
    ),
    Case(name="tool_choice none", steps=(_CALL,), fields={"tool_choice": "none"}),
    Case(name="a call at the length limit", steps=(_CALL,), fields={"max_tokens": 20}),
)
_CHAT_GATED = (
    *(
        Case(name=f"suppressed, {name}", steps=(_CERTAIN,), fields=fields, gateway="enforce")
        for name, fields in (
            ("two choices", {"n": 2, "temperature": 1.0}),
            ("ids and log-probs", {"return_token_ids": True, "logprobs": True, "top_logprobs": 1}),
            ("without reasoning", {"include_reasoning": False}),
            ("required", {"tool_choice": "required"}),
            ("named", {"tool_choice": {"type": "function", "function": {"name": "lookup"}}}),
            ("within the length", {"max_tokens": 60}),
        )
    ),
    *(
        Case(
            name=f"suppressed, {name}",
            steps=(_CERTAIN,),
            fields=fields,
            gateway="enforce",
            streamed=STREAMED,
        )
        for name, fields in _STREAM_OPTIONS[:2]
    ),
    Case(
        name="choices gated one by one",
        steps=([_CERTAIN, _calls("Bo", confidence=UNSURE), _PLAIN],),
        fields={"n": 3, "temperature": 1.0},
        gateway="enforce",
    ),
    Case(
        name="suppressed, debug",
        steps=(_CERTAIN,),
        headers={"x-entrogate-debug": "1"},
        gateway="enforce",
    ),
    Case(
        name="replayed, usage and debug",
        steps=(_CALL, _CALL, _PLAIN),
        gateway="replay",
        results=("in Berlin",),
        headers={"x-entrogate-debug": "1"},
        fields={"return_token_ids": True},
    ),
)
_COMPLETIONS = (
    Case(name="text", steps=(_PLAIN,), fields={"max_tokens": 8}),
    Case(
        name="log-probs and ids", steps=(_PLAIN,), fields={"logprobs": 1, "return_token_ids": True}
    ),
    Case(name="usage", steps=(_PLAIN,), fields={"stream_options": {"include_usage": True}}),
    Case(name="refused with 400", steps=({"fault": "error", "status": 400},)),
    Case(name="cut in the middle", steps=({**_PLAIN, "fault": "cut", "at": 1},), streamed=STREAMED),
)


def _through(door: str, *cases: Case, stored: bool = True) -> tuple[Case, ...]:
    return tuple(replace(case, door=door, stored=case.stored and stored) for case in cases)


GROUPS: dict[str, tuple[Case, ...]] = {
    "chat-answers": _ANSWERS,
    "chat-options": _CHAT_ONLY,
    "chat-decisions": _DECISIONS,
    "chat-decisions-options": _CHAT_GATED,
    "chat-faults": _FAULTS,
    "chat-shapes": _through("chat", *_SHAPES, stored=False),
    "messages-answers": _through("messages", *_ANSWERS, stored=False),
    "messages-decisions": _through("messages", *_DECISIONS, stored=False),
    "messages-faults": _through("messages", *_FAULTS, stored=False),
    "messages-shapes": _through("messages", *_SHAPES, stored=False),
    "responses-answers": _through("responses", *_ANSWERS, stored=False),
    "responses-decisions": _through("responses", *_DECISIONS, stored=False),
    "responses-faults": _through("responses", *_FAULTS, stored=False),
    "responses-shapes": _through("responses", *_SHAPES, stored=False),
    "completions": _through("completions", *_COMPLETIONS, stored=False),
}

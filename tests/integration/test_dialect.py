"""The scripted upstream says what a real vLLM 0.32 said, byte for byte (recorded/*.txt)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from entrogate_lab.bench.dialect import FINGERPRINT, Renderer, Wish
from entrogate_lab.bench.script import Call, Step, Token, Turn, Vocabulary, _Parser, generate

RECORDED = Path(__file__).parent / "recorded"
CALL = Call(name="lookup", arguments='{"entity": "Ada Lind", "relation": "born_in"}')
OTHER = Call(name="lookup", arguments='{"entity": "Bo Ek", "relation": "born_in"}')
CALLS = {"call": (CALL,), "parallel": (CALL, OTHER), "think": ()}
INJECTED = {"return_token_ids": True, "logprobs": True, "top_logprobs": 2}


def normal(data: bytes) -> bytes:
    data = re.sub(rb"chatcmpl-tool-\w+", b"chatcmpl-tool-X", data)
    data = re.sub(rb'"id":"(chatcmpl|cmpl)-[0-9A-Za-z]+"', rb'"id":"\1-X"', data)
    data = data.replace(FINGERPRINT.encode(), b"F")
    return re.sub(rb'"created":\d+', b'"created":0', data)


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.txt").read_bytes()


def spoken(case: str) -> tuple[Turn, list[int]]:
    """The turn that the real server sampled, and the ids of its prompt."""
    lines = [line[6:] for line in recorded(f"chat-{case}-stream-inj").split(b"\n\n") if line]
    first, *events = [json.loads(line) for line in lines if line != b"[DONE]"]
    tokens: list[Token] = []
    for event in events:
        choice = event["choices"][0]
        (entry,) = choice["logprobs"]["content"]
        (token_id,) = choice["token_ids"]
        delta = choice["delta"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                call["id"] = None
        top = tuple((0, t["token"], t["logprob"]) for t in entry["top_logprobs"])
        last = choice["finish_reason"] is not None
        tokens.append(
            Token(
                token_id=token_id,
                text=entry["token"],
                logprob=entry["logprob"],
                top=top,
                delta=delta if delta or last else None,
            )
        )
    return Turn(tokens=tuple(tokens), finish_reason="stop"), first["prompt_token_ids"]


def renderer(case: str, body: dict, *, chat: bool = True) -> tuple[Renderer, Turn]:
    turn, prompt = spoken(case)
    wish = Wish.of(body, chat=chat)
    return Renderer(wish, Vocabulary(), model="almanac", prompt=prompt), turn


@pytest.mark.parametrize("case", ["call", "parallel", "think"])
@pytest.mark.parametrize(("asked", "name"), [({}, "bare"), (INJECTED, "inj")])
def test_chat(case: str, asked: dict, name: str) -> None:
    made, turn = renderer(case, {"stream": True, **asked})
    events = b"".join(made.chat_events([turn]))
    assert normal(events) == normal(recorded(f"chat-{case}-stream-{name}"))
    made, turn = renderer(case, asked)
    assert normal(made.chat_body([turn])) == normal(recorded(f"chat-{case}-json-{name}"))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({**INJECTED, "stream_options": {"include_usage": True}}, "usage"),
        ({"logprobs": True}, "logprobs"),
        ({"return_token_ids": True}, "ids"),
    ],
)
def test_chat_options(asked: dict, name: str) -> None:
    made, turn = renderer("call", {"stream": True, **asked})
    assert normal(b"".join(made.chat_events([turn]))) == normal(recorded(f"chat-call-{name}"))


def test_chat_length() -> None:
    made, turn = renderer("call", {"stream": True, **INJECTED})
    cut = Turn(tokens=turn.tokens[:20], finish_reason="length")
    assert normal(b"".join(made.chat_events([cut]))) == normal(recorded("chat-call-length"))


@pytest.mark.parametrize(("asked", "name"), [({}, "bare"), (INJECTED, "inj")])
def test_completion(asked: dict, name: str) -> None:
    body = {"logprobs": 2, "return_token_ids": True} if asked else {}
    made, turn = renderer("call", {"stream": True, **body}, chat=False)
    events = b"".join(made.completion_events([turn]))
    assert normal(events) == normal(recorded(f"text-call-stream-{name}"))
    made, turn = renderer("call", body, chat=False)
    assert normal(made.completion_body([turn])) == normal(recorded(f"text-call-json-{name}"))


def test_completion_usage() -> None:
    body = {"logprobs": 2, "return_token_ids": True, "stream_options": {"include_usage": True}}
    made, turn = renderer("call", {"stream": True, **body}, chat=False)
    assert normal(b"".join(made.completion_events([turn]))) == normal(recorded("text-call-usage"))


@pytest.mark.parametrize("case", ["call", "parallel", "think"])
def test_parsers(case: str) -> None:
    turn, _ = spoken(case)
    parser = _Parser(parse_calls=True, calls=CALLS[case])
    for token in turn.tokens[:-1]:
        made = parser.delta(token.text)
        if made and "tool_calls" in made and "type" in made["tool_calls"][0]:
            assert list(made["tool_calls"][0]) == ["id", "type", "index", "function"]
        assert made == token.delta, token.text


def test_generated_turns_go_on_from_any_prefix() -> None:
    step = Step(reasoning="who is it", content="Let me see.", calls=(CALL, OTHER), masked="No.")
    vocabulary = Vocabulary()
    whole = generate(step, vocabulary, parse_calls=True)
    texts = [token.text for token in whole.tokens]
    assert "".join(texts[:-1]) == step.text(masked=False)
    for cut in range(len(texts)):
        partial = "".join(texts[:cut])
        rest = generate(step, vocabulary, parse_calls=False, partial=partial)
        assert [t.token_id for t in rest.tokens] == [t.token_id for t in whole.tokens[cut:]]
    kept = "".join(texts[: texts.index("<tool_call>")])
    rest = generate(step, vocabulary, parse_calls=False, partial=kept, masked=True)
    assert "".join(t.text for t in rest.tokens) == "No.<|im_end|>"

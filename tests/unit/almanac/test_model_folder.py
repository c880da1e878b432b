"""The folder that ships in the package, and the text form of conversations."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import entrogate_lab.almanac
from entrogate_lab.almanac.demonstrations import Demonstration, Habits, demonstrate
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import DOMAINS, draw_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS, tool_schema
from entrogate_lab.almanac.transcript import ADDED_TOKENS, CHAT_TEMPLATE, pieces
from entrogate_lab.almanac.world import make_world

MODEL = Path(entrogate_lab.almanac.__file__).parent / "model"


def _demonstration(index: int) -> Demonstration:
    world, rng = make_world(0), random.Random(index)
    sketch = Sketch(world, rng, known_people=0.6, known_places=0.45)
    task = draw_task(rng, world, sketch, sketch, domain=DOMAINS[index % 3], split="train")
    return demonstrate(rng, world, sketch, task, Habits())


def _messages(shown: Demonstration) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": shown.question}]
    for turn in shown.turns:
        message: dict[str, Any] = {"role": "assistant", "reasoning": f"\n{turn.reasoning}\n"}
        messages.append(message)
        if turn.call is None:
            message["content"] = f"\n\n{turn.answer}"
            continue
        function = {"name": turn.call.name, "arguments": dict(turn.call.arguments)}
        message |= {"content": None, "tool_calls": [{"type": "function", "function": function}]}
        messages.append({"role": "tool", "content": turn.result})
    return messages


def _render(messages: list[dict[str, Any]], tools: tuple[str, ...], *, ask: bool) -> str:
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    schemas = [tool_schema(name) for name in tools] or None
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, tools=schemas, add_generation_prompt=ask)


@pytest.mark.parametrize("index", range(12))
def test_the_template_renders_what_the_model_is_trained_on(index: int):
    shown = _demonstration(index)
    parts = pieces(shown, DOMAIN_TOOLS[shown.domain])
    text = "".join(part.text for part in parts)
    rendered = _render(_messages(shown), DOMAIN_TOOLS[shown.domain], ask=False)
    if shown.answer is None:
        rendered = rendered[: len(text)]
    assert rendered.rstrip("\n") == text


def test_each_prompt_begins_with_the_prompt_and_the_sample_before():
    shown = _demonstration(1)
    messages, tools = _messages(shown), DOMAIN_TOOLS[shown.domain]
    parts = pieces(shown, tools)
    for turn in range(len(shown.turns)):
        prompt = _render(messages[: 1 + 2 * turn], tools, ask=True)
        assert prompt == "".join(part.text for part in parts[: 2 * turn + 1])


def test_calls_parse_back_to_name_and_arguments():
    shown = _demonstration(2)
    text = "".join(part.text for part in pieces(shown, ()))
    calls = [turn.call for turn in shown.turns if turn.call is not None]
    written = [part.split("</tool_call>")[0] for part in text.split("<tool_call>")[1:]]
    parsed = [json.loads(part) for part in written]
    assert parsed == [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]


def test_a_conversation_without_tools_has_no_system_turn():
    text = _render([{"role": "user", "content": "Hi?"}], (), ask=True)
    assert text == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"


def test_the_shipped_folder_is_small_and_complete():
    names = {path.name for path in MODEL.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    } <= names
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 10_000_000


def test_the_shipped_folder_loads():
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    assert config.model_type == "qwen3"
    assert config.vocab_size % 64 == 0
    assert config.vocab_size > len(tokenizer)
    assert json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"] == (
        CHAT_TEMPLATE
    )
    for token in ADDED_TOKENS:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_every_name_of_the_world_is_one_token_of_the_shipped_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    module = pytest.importorskip("entrogate_lab.almanac.tokenizer")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for word in module.single_tokens(make_world(0).words):
        assert len(tokenizer.encode(word).ids) == 1
    assert tokenizer.encode("1234 * 567").tokens == ["12", "34", "Ġ*Ġ", "56", "7"]

"""Parsers by the tokens of small tokenizer files."""

import json
from pathlib import Path

import pytest

from entrogate.settings import ManagedSettings
from entrogate.upstream.parsers import choose_parsers


def folder(path: Path, *tokens: str, file: str = "tokenizer.json") -> str:
    added = [{"id": i, "content": token} for i, token in enumerate(tokens)]
    content = {"added_tokens": added}
    if file != "tokenizer.json":
        content = {"added_tokens_decoder": {str(e["id"]): {"content": e["content"]} for e in added}}
    (path / file).write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("tokens", "reasoning", "calls"),
    [
        ((), None, "hermes"),
        (("<|im_start|>", "<|im_end|>"), None, "hermes"),
        (("<think>", "</think>", "<tool_call>"), "qwen3", "hermes"),
        (("<think>",), None, "hermes"),
        (("[THINK]", "[/THINK]", "[TOOL_CALLS]"), "mistral", "mistral"),
        (("<|python_tag|>",), None, "llama3_json"),
    ],
)
def test_the_tokens_decide(
    tmp_path: Path, file: str, tokens: tuple[str, ...], reasoning: str | None, calls: str
) -> None:
    chosen = choose_parsers(ManagedSettings(model=folder(tmp_path, *tokens, file=file)))
    assert (chosen.reasoning.name, chosen.tool_calls.name) == (reasoning, calls)
    assert "token" in chosen.described()["reasoning_parser"]


def test_markers_that_are_ordinary_tokens_count(tmp_path: Path) -> None:
    vocabulary = {"model": {"vocab": {"<think>": 5, "</think>": 6}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    chosen = choose_parsers(ManagedSettings(model=str(tmp_path)))
    assert chosen.reasoning.name == "qwen3"


@pytest.mark.parametrize("none", ["none", "None", " NONE ", "", None])
def test_none_is_none_whatever_the_tokenizer_has(tmp_path: Path, none: str | None) -> None:
    model = folder(tmp_path, "<think>", "</think>", "<tool_call>")
    settings = ManagedSettings(model=model, reasoning_parser=none, tool_call_parser=none)
    chosen = choose_parsers(settings)
    assert (chosen.reasoning.name, chosen.tool_calls.name) == (None, None)
    assert str(chosen.reasoning) == "none (set)"


def test_a_parser_that_is_named_is_taken(tmp_path: Path) -> None:
    settings = ManagedSettings(model=folder(tmp_path), reasoning_parser="deepseek_r1")
    assert str(choose_parsers(settings).reasoning) == "deepseek_r1 (set)"


def test_a_folder_without_a_tokenizer_gets_no_reasoning_parser(tmp_path: Path) -> None:
    chosen = choose_parsers(ManagedSettings(model=str(tmp_path)))
    assert chosen.reasoning.name is None
    assert "not at hand" in chosen.reasoning.why


def test_the_bundled_model_reasons() -> None:
    model = Path(__file__).parents[3] / "app" / "entrogate_lab" / "almanac" / "model"
    chosen = choose_parsers(ManagedSettings(model=str(model)))
    assert (chosen.reasoning.name, chosen.tool_calls.name) == ("qwen3", "hermes")

"""Which of vLLM's parsers fit a model, by the special tokens of its tokenizer.

A reasoning parser for a model that does not reason puts the whole answer into ``reasoning`` and
leaves ``content`` null, so without think tokens there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from entrogate.settings import ManagedSettings
from entrogate.upstream import model_folder

# The tokens that open and close the reasoning, and vLLM's parser for them.
REASONING = (
    ("<think>", "</think>", "qwen3"),
    ("[THINK]", "[/THINK]", "mistral"),
    ("<seed:think>", "</seed:think>", "seed_oss"),
)
_CALLS = (("<tool_call>", "hermes"), ("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3_json"))
_DEFAULT_CALLS = "hermes"
_AUTO = "auto"
_NONE = ("", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """One parser of vLLM, None for none, and why it was chosen."""

    name: str | None
    why: str

    def __str__(self) -> str:
        return f"{self.name or 'none'} ({self.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsers:
    """What a managed vLLM reads its model's answers with."""

    reasoning: Parser
    tool_calls: Parser

    def described(self) -> dict[str, str]:
        """For `/ready`: which, and why."""
        return {"reasoning_parser": str(self.reasoning), "tool_call_parser": str(self.tool_calls)}


def choose_parsers(settings: ManagedSettings) -> Parsers:
    """The parsers that the settings name, and where they say `auto` those that fit the model.

    Raises ConfigError for a tokenizer that cannot be read.
    """
    named = (settings.reasoning_parser, settings.tool_call_parser)
    tokens: dict[str, int] | None = None
    if _AUTO in (_told(name) for name in named) and settings.model is not None:
        texts = [text for *pair, _ in REASONING for text in pair] + [text for text, _ in _CALLS]
        tokens = model_folder.token_ids(settings.model, texts, fetch=True)
    return Parsers(
        reasoning=_set(settings.reasoning_parser) or _reasoning(tokens),
        tool_calls=_set(settings.tool_call_parser) or _tool_calls(tokens),
    )


def _told(name: str | None) -> str:
    return (name or "").strip().lower()


def _set(name: str | None) -> Parser | None:
    """What the settings say; None where they leave it to us."""
    told = _told(name)
    if told == _AUTO:
        return None
    return Parser(name=None if told in _NONE else (name or "").strip(), why="set")


def _reasoning(tokens: dict[str, int] | None) -> Parser:
    if tokens is None:
        return Parser(name=None, why="the model's tokenizer is not at hand")
    for opening, closing, parser in REASONING:
        if opening in tokens and closing in tokens:
            return Parser(name=parser, why=f"the tokenizer has {opening}")
    return Parser(name=None, why="the tokenizer has no think tokens")


def _tool_calls(tokens: dict[str, int] | None) -> Parser:
    for text, parser in _CALLS:
        if tokens is not None and text in tokens:
            return Parser(name=parser, why=f"the tokenizer has {text}")
    return Parser(name=_DEFAULT_CALLS, why="the default")

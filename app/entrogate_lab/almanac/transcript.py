"""How a conversation reads as text: the chat template, and demonstrations in the same form."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from entrogate_lab.almanac.demonstrations import Call, Demonstration
from entrogate_lab.almanac.tools import tool_schema

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
RESULT, RESULTED = "<tool_response>", "</tool_response>"
ADDED_TOKENS = (PAD, START, END, THINK, THOUGHT, CALL, CALLED, RESULT, RESULTED)

CHAT_TEMPLATE = (
    "{%- set lead = messages[0].content if messages[0].role == 'system' else '' -%}"
    "{%- if tools or lead -%}"
    "{{- '<|im_start|>system\\n' + lead -}}"
    "{%- if tools -%}"
    "{{- ('\\n' if lead else '') + 'Tools: ' -}}"
    "{%- for tool in tools -%}"
    "{%- set about = tool.function if tool.function is defined else tool -%}"
    "{{- about.name + '(' + (about.parameters.properties | list | join(', ')) + ')' -}}"
    "{{- '' if loop.last else '; ' -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- elif message.role == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- set thought = message.reasoning_content or message.reasoning or '' -%}"
    "{%- if thought -%}"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}"
    "{%- endif -%}"
    "{{- (message.content or '').lstrip('\\n') -}}"
    "{%- for tool_call in message.tool_calls or [] -%}"
    "{%- set call = tool_call.function if tool_call.function is defined else tool_call -%}"
    "{{- '' if loop.first and not message.content else '\\n' -}}"
    '{{- \'<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' -}}'
    "{{- call.arguments if call.arguments is string else call.arguments | tojson -}}"
    "{{- '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}"
    "{{- '<|im_start|>user' -}}"
    "{%- endif -%}"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""Qwen3's template made terse: tools by name and parameter names, reasoning kept when sent back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of text that is wholly the model's own (`own`, learnt) or wholly given to it.

    `barred`: learnt as what is said where no call can be made, the token that opens one left out of
    the choice.
    """

    text: str
    own: bool
    barred: bool = False


def pieces(
    demonstration: Demonstration, tools: Sequence[str], *, reasoning: bool = True
) -> list[Piece]:
    """The demonstration as the chat template renders it, cut where the speaker changes.

    Without `reasoning` each turn is its call or its answer alone.
    """
    given = ""
    if tools:
        shown = "; ".join(f"{name}({', '.join(_parameters(name))})" for name in tools)
        given = f"{START}system\nTools: {shown}{END}\n"
    given += f"{START}user\n{demonstration.question}{END}\n{START}assistant\n"
    parts: list[Piece] = []
    for turn in demonstration.turns:
        own = f"{THINK}\n{turn.reasoning}\n{THOUGHT}\n\n" if reasoning else ""
        own += call_text(turn.call) if turn.call is not None else (turn.answer or "")
        parts += [Piece(text=given, own=False), Piece(text=own + END, own=True)]
        given = f"\n{START}user\n{RESULT}\n{turn.result}\n{RESULTED}{END}\n{START}assistant\n"
    return parts


def exchanges(asked: Sequence[tuple[str, str]]) -> list[Piece]:
    """A conversation of (question, answer) pairs without tools and without reasoning."""
    parts: list[Piece] = []
    between = ""
    for question, answer in asked:
        given = f"{between}{START}user\n{question}{END}\n{START}assistant\n"
        parts += [Piece(text=given, own=False), Piece(text=answer + END, own=True)]
        between = "\n"
    return parts


def call_text(call: Call) -> str:
    """A call in hermes form."""
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return f'{CALL}\n{{"name": "{call.name}", "arguments": {arguments}}}\n{CALLED}'


def _parameters(name: str) -> list[str]:
    return list(tool_schema(name)["function"]["parameters"]["properties"])

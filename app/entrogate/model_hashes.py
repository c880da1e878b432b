"""What identifies a model's tokenizer and chat template: rows and trainers compare it.

Of a model folder at hand, it is a hash of its files. Of a model that only a server knows, it is
``probe-`` and a hash of the token ids that `PROBE` and a rendered conversation have there; whoever
has the tokenizer can compute the first again (`probe_of`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrogate.errors import ConfigError

PROBE_PREFIX = "probe-"

PROBE = (
    "The quick brown fox jumps over 13 lazy dogs; 3.14159 != 2,718 and 0xDEADBEEF.\n\n"
    "def f(x: int) -> str:\n    return {'k': [x, None]}[\"k\"]  # \tend\r\n"
    "Zwölf Boxkämpfer, où l'été, Жёлтый, 東京の天気は？ 안녕하세요 مرحبا שלום 🙂👩‍🔬 ≤½∑\n"
    '<think>so</think><tool_call>{"name": "f"}</tool_call><|im_start|>user<|im_end|>'
    "<s>[INST]x[/INST]</s><|eot_id|><|endoftext|>   antidisestablishmentarianism AAAA aaaa"
)
"""Text that tokenizers cut differently."""

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]
"""What is rendered to tell chat templates apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHashes:
    """What tells a trainer that it has the model that sampled; "" where it is not known."""

    tokenizer: str = ""
    chat_template: str = ""


def hashes_of(folder: Path) -> ModelHashes:
    """What identifies the tokenizer and the chat template of a model folder."""
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(f"{folder} has no tokenizer.json")
    template = b""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = (folder / name).read_bytes()
            break
    return ModelHashes(
        tokenizer=hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16],
        chat_template=hashlib.sha256(template).hexdigest()[:16],
    )


def hash_of_ids(token_ids: list[int]) -> str:
    """What stands for a text by its token ids."""
    said = ",".join(str(each) for each in token_ids)
    return PROBE_PREFIX + hashlib.sha256(said.encode()).hexdigest()[:16]


def probe_of(folder: Path) -> str:
    """The hash that a server with this folder's tokenizer gives; needs the package tokenizers."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return hash_of_ids(tokenizer.encode(PROBE, add_special_tokens=False).ids)

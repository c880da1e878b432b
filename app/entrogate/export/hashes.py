"""What identifies a model's tokenizer and chat template: rows and trainers compare it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from entrogate.errors import ConfigError


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

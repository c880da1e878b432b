"""What can be read of a model without loading it: its vocabulary's size and its special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import httpx

from entrogate.errors import ConfigError

_LARGEST_FILE = 256 * 2**20


def vocabulary_size(model: str) -> int | None:
    """Width of the model's logits from its config.json, or None when that is not at hand.

    Raises ConfigError when the file is there and cannot be read.
    """
    config = _read(model, "config.json")
    text = config.get("text_config") if config is not None else None
    for each in (config, text):
        if isinstance(each, dict):
            size = cast("dict[str, Any]", each).get("vocab_size")
            if isinstance(size, int) and size > 0:
                return size
    return None


def token_ids(model: str, texts: Iterable[str], *, fetch: bool = False) -> dict[str, int] | None:
    """The ids of those ``texts`` that are one token by themselves; None: no tokenizer at hand.

    ``fetch``: the files of a model that vLLM will download anyway are downloaded now.

    Read from the added tokens and the vocabulary of tokenizer.json, else from the added tokens of
    tokenizer_config.json. Raises ConfigError for a file that cannot be read.
    """
    known = _tokens(model, fetch=fetch)
    return None if known is None else {text: known[text] for text in texts if text in known}


def _tokens(model: str, *, fetch: bool) -> Mapping[str, int] | None:
    tokenizer = _read(model, "tokenizer.json", fetch=fetch)
    config = _read(model, "tokenizer_config.json", fetch=fetch)
    if tokenizer is None and config is None:
        return None
    found: dict[str, int] = {}
    for each in _dicts((tokenizer or {}).get("added_tokens")):
        _note(found, each.get("content"), each.get("id"))
    model_part = (tokenizer or {}).get("model")
    vocabulary = (
        cast("dict[str, Any]", model_part).get("vocab") if isinstance(model_part, dict) else None
    )
    if isinstance(vocabulary, dict):
        for text, number in cast("dict[str, Any]", vocabulary).items():
            _note(found, text, number)
    decoder = (config or {}).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, each in cast("dict[str, Any]", decoder).items():
            if isinstance(each, dict) and number.isdigit():
                _note(found, cast("dict[str, Any]", each).get("content"), int(number))
    return found


def _dicts(value: object) -> list[dict[str, Any]]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


def _note(found: dict[str, int], text: object, number: object) -> None:
    if isinstance(text, str) and isinstance(number, int):
        found.setdefault(text, number)


def _read(model: str, name: str, *, fetch: bool = False) -> dict[str, Any] | None:
    path = _file(model, name) or (_fetched(model, name) if fetch else None)
    if path is None:
        return None
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"larger than {_LARGEST_FILE} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"cannot read {path}: want a JSON object")
    return cast("dict[str, Any]", content)


def _fetched(model: str, name: str) -> Path | None:
    """The file from the Hugging Face hub; None where it is not there, or nothing can be reached."""
    if find_spec("huggingface_hub") is None or Path(model).expanduser().is_dir():
        return None
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(model, name))  # nosec B615 (the revision that vLLM serves)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError):
        return None


def _file(model: str, name: str) -> Path | None:
    path = Path(model).expanduser() / name
    if path.is_file():
        return path
    if find_spec("huggingface_hub") is None:  # comes with vLLM
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:  # a path
        return None
    return Path(found) if isinstance(found, str) else None

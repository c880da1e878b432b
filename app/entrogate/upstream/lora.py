"""A LoRA folder as peft writes it: what it is, and whether it fits a base model. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from entrogate.errors import ConfigError

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_IN, _OUT = ".lora_A.weight", ".lora_B.weight"
_UNPACKED = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # a tensor has its layer's shape in these

_LONGEST_HEADER = 100 * 2**20  # what safetensors itself takes

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA folder; ``version`` names its weights."""

    folder: Path
    rank: int
    base: str
    version: str

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Raises ConfigError when the folder holds no whole LoRA."""
        try:
            config = orjson.loads((folder / "adapter_config.json").read_bytes())
            with (folder / _WEIGHTS).open("rb") as weights:
                digest = hashlib.file_digest(weights, "sha256").hexdigest()
            return cls(
                folder=folder.resolve(),
                rank=int(config["r"]),
                base=str(config["base_model_name_or_path"]),
                version=digest[:12],
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"{folder} is no LoRA: it has no {Path(error.filename).name}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder}: adapter_config.json is unusable: {error!r}") from None

    def check_fits(self, model: Path) -> None:
        """ConfigError when a layer of the base model in ``model`` has another shape.

        vLLM (0.32) loads a LoRA of a smaller model without a word, and answers with nonsense. What
        cannot be compared (a packed or renamed tensor, no safetensors) is left to vLLM.
        """
        layers = _shapes(sorted(model.glob("*.safetensors")))
        for name, shape in _shapes([self.folder / _WEIGHTS]).items():
            suffix, axis = (_IN, 1) if name.endswith(_IN) else (_OUT, 0)
            layer = name.removeprefix(_PREFIX).removesuffix(suffix)
            known = layers.get(f"{layer}.weight", ())
            if len(known) == len(shape) == 2 and known[axis] != shape[axis]:
                raise ConfigError(
                    f"{self.folder} is a LoRA of another model ({self.base}): its {layer} is"
                    f" {shape[axis]} wide, that of {model} {known[axis]}"
                )


def _shapes(files: Iterable[Path]) -> Shapes:
    """The shapes of the tensors in safetensors files, from their headers."""
    found: Shapes = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = orjson.loads(opened.read(min(length, _LONGEST_HEADER)))
            for name, tensor in header.items():
                if name != "__metadata__" and tensor["dtype"] in _UNPACKED:
                    found[name] = tuple(tensor["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} is no safetensors file: {error}") from None
    return found

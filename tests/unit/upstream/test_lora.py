"""What a LoRA folder must hold, and which base model it fits; files written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entrogate.errors import ConfigError
from entrogate.upstream.lora import Adapter

Q = "model.layers.0.self_attn.q_proj"


def safetensors(file: Path, shapes: dict[str, tuple[str, list[int]]]) -> None:
    """A file of this format, without the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)


def lora(folder: Path, *, wide: int = 64, out: int = 32) -> Adapter:
    folder.mkdir()
    config = {"r": 8, "base_model_name_or_path": "/models/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = {
        f"base_model.model.{Q}.lora_A.weight": ("F32", [8, wide]),
        f"base_model.model.{Q}.lora_B.weight": ("F32", [out, 8]),
    }
    safetensors(folder / "adapter_model.safetensors", shapes)
    return Adapter.read(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    safetensors(folder / "model-1.safetensors", {"model.norm.weight": ("BF16", [64])})
    safetensors(folder / "model-2.safetensors", {f"{Q}.weight": ("BF16", [32, 64])})
    return folder


def test_a_lora_of_this_model_fits(tmp_path: Path, model: Path) -> None:
    adapter = lora(tmp_path / "one")
    assert (adapter.rank, adapter.base) == (8, "/models/base")
    adapter.check_fits(model)


@pytest.mark.parametrize("changed", [{"wide": 32}, {"wide": 128}, {"out": 16}])
def test_a_lora_of_another_model_does_not(
    tmp_path: Path, model: Path, changed: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=f"another model .*its {Q} is"):
        lora(tmp_path / "one", **changed).check_fits(model)


def test_what_cannot_be_compared_is_left_to_vllm(tmp_path: Path, model: Path) -> None:
    adapter = lora(tmp_path / "one", wide=128)
    safetensors(model / "model-2.safetensors", {f"{Q}.weight": ("U8", [2048, 1])})
    adapter.check_fits(model)
    adapter.check_fits(tmp_path / "elsewhere")


def test_the_version_is_that_of_the_weights(tmp_path: Path) -> None:
    one, same, other = lora(tmp_path / "1"), lora(tmp_path / "2"), lora(tmp_path / "3", out=8)
    assert one.version == same.version != other.version


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", None, "has no adapter_config.json"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter_config.json", b"{}", "adapter_config.json is unusable"),
        ("adapter_config.json", b"[]", "adapter_config.json is unusable"),
        ("adapter_model.safetensors", b"half a file", "is no safetensors file"),
        ("adapter_model.safetensors", b"", "is no safetensors file"),
    ],
)
def test_a_folder_that_is_no_lora(
    tmp_path: Path, model: Path, file: str, content: bytes | None, message: str
) -> None:
    lora(tmp_path / "one")
    if content is None:
        (tmp_path / "one" / file).unlink()
    else:
        (tmp_path / "one" / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Adapter.read(tmp_path / "one").check_fits(model)

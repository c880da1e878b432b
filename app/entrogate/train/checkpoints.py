"""Checkpoints of a run: written whole or not at all, the newest two kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import torch

from entrogate.errors import ConfigError

_KEPT = 2
LOG = "log.jsonl"


class Checkpoints:
    """Under ``folder``: ``checkpoint-N.pt`` (trained weights, optimiser) and ``log.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error}") from None

    def save(self, model: Any, optimizer: Any, step: int) -> None:
        """Write checkpoint ``step``."""
        weights = {name: p.detach().cpu() for name, p in _trained(model)}
        path = self._folder / f"checkpoint-{step:06}.pt"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as out:
            torch.save({"step": step, "weights": weights, "optimizer": optimizer.state_dict()}, out)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        for old in self._paths()[:-_KEPT]:
            old.unlink()

    def resume(self, model: Any, optimizer: Any) -> int:
        """Load the newest checkpoint, if there is one; returns its step."""
        paths = self._paths()
        if not paths:
            self._cut_log(0)
            return 0
        state = torch.load(paths[-1], map_location="cpu", weights_only=True)
        own = dict(_trained(model))
        shapes = {name: p.shape for name, p in own.items()}
        if shapes != {name: p.shape for name, p in state["weights"].items()}:
            raise ConfigError(f"{paths[-1]} is of another model or LoRA; use another folder")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state["weights"][name])
        optimizer.load_state_dict(state["optimizer"])
        self._cut_log(state["step"])
        return int(state["step"])

    def log(self, line: bytes) -> None:
        with (self._folder / LOG).open("ab") as out:
            out.write(line + b"\n")

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*.pt"))

    def _cut_log(self, step: int) -> None:
        """Steps after the checkpoint are done again."""
        path = self._folder / LOG
        if path.exists():
            lines = path.read_bytes().splitlines()
            kept = [line for line in lines if orjson.loads(line)["step"] <= step]
            path.write_bytes(b"".join(line + b"\n" for line in kept))


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

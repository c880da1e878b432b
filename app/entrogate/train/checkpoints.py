# pyright: reportUnknownMemberType=false
"""Checkpoints of a run: written whole or not at all, the newest two kept.

Weights and optimiser are gathered from all processes (FSDP2 shards them), so a run may go on with
another number of processes than it began with.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from entrogate.errors import ConfigError

_KEPT = 2
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a run stands. ``stopped`` says why it ended before its last step, if it did."""

    step: int
    stopped: str | None
    weights: dict[str, Any]  # of the trained parameters
    optimizer: dict[str, Any]


def gather(model: Any, optimizer: Any, *, step: int, stopped: str | None) -> State:
    """The state of a run, whole and on the CPU; every process has to call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, optimizer_state = get_state_dict(model, optimizer, options=options)
    return State(step=step, stopped=stopped, weights=weights, optimizer=optimizer_state)


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """What fails when it is written, a full disk first of all, is a ConfigError in one line."""
    try:
        yield
    # torch and safetensors have names of their own for an OSError.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot write to {folder}: {reason}; with room there, the same command goes on"
            " from the last checkpoint"
        ) from error


class Checkpoints:
    """Under ``folder``: ``checkpoint-N.pt`` (trained weights, optimiser) and ``log.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: State) -> None:
        """Write it; one process does."""
        path = self._folder / f"checkpoint-{state.step:06}.pt"
        temporary = path.with_suffix(".tmp")
        try:
            with writing(self._folder), temporary.open("wb") as out:
                torch.save(asdict(state), out)
                out.flush()
                os.fsync(out.fileno())
        except ConfigError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        for old in self._paths()[:-_KEPT]:
            old.unlink()

    def resume(self, model: Any, optimizer: Any) -> tuple[int, str | None]:
        """Load the newest checkpoint, if there is one: its step, and why the run ended there."""
        paths = self._paths()
        if not paths:
            self._cut_log(0)
            return 0, None
        state = State(**torch.load(paths[-1], map_location="cpu", weights_only=True))
        own = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        if own != {name: value.shape for name, value in state.weights.items()}:
            raise ConfigError(f"{paths[-1]} is of another model or LoRA; use another folder")
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state.weights,
            optim_state_dict=state.optimizer,
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
        self._cut_log(state.step)
        return state.step, state.stopped

    def log(self, line: bytes) -> None:
        """Append a line of JSON (without its line break) to the log.

        Raises ConfigError where the folder cannot be written.
        """
        with writing(self._folder), (self._folder / LOG).open("ab") as out:
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

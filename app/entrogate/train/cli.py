"""``entrogate train``: offline RL on exported trajectories."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import ValidationError

from entrogate.ranges import FiniteRange
from entrogate.train.settings import TrainSettings

_HELP = {
    "model": "Model folder to start from.",
    "out": "Folder of the result; a run that was stopped goes on there.",
    "loss": "topr and cispo for logged data, grpo near the policy, rwsft without log-probs.",
    "reward": "outcome, otc (calls × correctness), sparse or dense (docs/training.md).",
    "baseline": "What a reward is compared with in its group.",
    "dense": "The paper's dense advantage, or one that never turns the outcome's sign.",
    "alpha": "Weight of I_k in the dense reward.",
    "min_reduction": "Nats by which a call has to lower the entropy to count as good.",
    "no_calls": "Sparse reward of a trajectory without calls.",
    "ratio": "topr's ratio: of a token or of its sequence.",
    "clip": "grpo's ε.",
    "cap": "Largest weight of cispo.",
    "ce_weight": "Share of cross-entropy on successful trajectories.",
    "kl_weight": "Weight of the KL to the model that training starts from.",
    "lora_rank": "0 trains all weights.",
    "adapter": "LoRA folder to go on from (default: a new LoRA).",
    "lora_alpha": "Default: twice the rank.",
    "max_steps": "Stop after so many.",
    "batch_tokens": "Tokens of an optimiser step.",
    "pack_tokens": "Tokens of one forward pass.",
    "bf16": "Compute in bfloat16; weights stay float32.",
    "save_every": "Steps between checkpoints.",
    "stop_effective_share": "Stop below this share of effective samples.",
    "stop_log_ratio": "Stop above this mean |ln ratio|.",
}


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each setting."""
    for name, field in reversed(TrainSettings.model_fields.items()):
        if name == "data":
            continue
        flag = f"--{name.replace('_', '-')}"
        kind: Any = field.annotation
        if get_origin(kind) is Literal:
            kind = click.Choice(list(get_args(kind)))
        elif get_args(kind):  # … | None
            kind = get_args(kind)[0]
        required = field.is_required()
        options: dict[str, Any] = {"help": _HELP.get(name), "required": required}
        if kind is bool:
            options["is_flag"] = True
        elif not required:
            chosen = FiniteRange() if kind is float else kind
            options |= {"type": chosen, "default": field.default, "show_default": True}
        command = click.option(flag, name, **options)(command)
    return command


@click.command()
@click.argument("data", nargs=-1, required=True)
@_settings_options
def train(**given: Any) -> None:
    """Train on the datasets DATA (folders or URLs that `entrogate export` wrote)."""
    try:
        settings = TrainSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise click.UsageError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    from entrogate.train.run import run

    run(settings, say=_say)
    _say(f"result in {Path(settings.out)}")


def _say(text: str) -> None:
    sys.stderr.write(f"train: {text}\n")

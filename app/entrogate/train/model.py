# ruff: noqa: N806 (shape suffixes)
"""The policy: a Hugging Face causal model, all of its weights or a LoRA on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrogate.errors import ConfigError
from entrogate.train import attention
from entrogate.train.packing import Pack
from entrogate.train.settings import TrainSettings


@dataclass(slots=True)
class Policy:
    """``model`` is trained; ``reference`` is None where the same weights without LoRA serve."""

    model: Any
    reference: Any | None
    base: str
    vocab_size: int
    max_length: int

    @classmethod
    def load(cls, settings: TrainSettings) -> Policy:
        """Load the base in float32. Raises ConfigError when there is no such model."""
        from transformers import AutoModelForCausalLM

        def base() -> Any:
            loader: Any = AutoModelForCausalLM
            kind = {"dtype": torch.float32, "attn_implementation": attention.PACKED}
            try:
                return loader.from_pretrained(settings.model, **kind)
            except (OSError, ValueError) as error:
                raise ConfigError(f"cannot load model {settings.model}: {error}") from None

        attention.register()
        model = base()
        config = model.config
        reference = None
        if settings.lora_rank:
            model = _with_lora(model, settings)
        elif settings.kl_weight:
            reference = base().requires_grad_(False)
        return cls(
            model=model,
            reference=reference,
            base=settings.model,
            vocab_size=config.vocab_size,
            max_length=config.max_position_embeddings,
        )

    def trainable(self) -> Iterable[torch.nn.Parameter]:
        """The parameters that are trained: those of the LoRA, or all."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def logprobs(self, pack: Pack) -> Tensor:
        """Log-probs of the trained tokens, at the temperature they were sampled at: (T,)."""
        return _logprobs(self.model, pack)

    @torch.no_grad()
    def reference_logprobs(self, pack: Pack) -> Tensor:
        """Log-probs of the pack's tokens under the weights that training began with, nats.

        Without a reference model the LoRA is switched off for the pass. The shape is that of the
        trained model's log-probs.
        """
        if self.reference is not None:
            return _logprobs(self.reference.to(pack.input_1P.device), pack)
        inner = getattr(self.model, "module", self.model)
        with inner.disable_adapter():
            return _logprobs(inner, pack)

    def save(self, model: Any, folder: Path, weights: dict[str, Any]) -> None:
        """The LoRA (as peft and vLLM read it) or the whole model with its tokenizer.

        ``weights`` are all of the model's, gathered from the processes.
        """
        model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
        if not hasattr(model, "peft_config"):
            _copy_tokenizer(self.base, folder)


def _with_lora(model: Any, settings: TrainSettings) -> Any:
    """A new LoRA on all linear layers, or the one in ``settings.adapter``."""
    from peft import LoraConfig, PeftModel, get_peft_model

    rank = settings.lora_rank
    if settings.adapter is None:
        alpha = settings.lora_alpha or 2 * rank
        wanted = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(model, wanted)
    try:
        config = json.loads((Path(settings.adapter) / "adapter_config.json").read_text())
        found: int = config["r"]
        if found != rank:
            raise ConfigError(
                f"the LoRA in {settings.adapter} has rank {found}, not {rank}: "
                f"give --lora-rank {found}"
            )
        loader: Any = PeftModel
        return loader.from_pretrained(model, settings.adapter, is_trainable=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"cannot load the LoRA in {settings.adapter}: {error}") from None


def _copy_tokenizer(base: str, folder: Path) -> None:
    """Make ``folder`` a model that can be served: its own files stay."""
    source = Path(base)
    if not source.is_dir():
        from transformers import AutoTokenizer

        loader: Any = AutoTokenizer
        loader.from_pretrained(base).save_pretrained(folder)
        return
    for file in source.iterdir():
        own = file.suffix in (".json", ".jinja", ".txt", ".model") and "index" not in file.name
        if own and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _logprobs(model: Any, pack: Pack) -> Tensor:
    output = model(
        input_ids=pack.input_1P,
        position_ids=pack.position_1P,
        sequence_lengths=pack.lengths,
        logits_to_keep=pack.predicting_T,
        use_cache=False,
    )
    logits_TV = output.logits[0].float() / pack.temperature_T[:, None]
    chosen_T = logits_TV.gather(1, pack.token_T[:, None])[:, 0]
    return chosen_T - logits_TV.logsumexp(dim=-1)
